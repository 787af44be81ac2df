"""Devices with keys of their SuperNodes: the same sums, and nothing for who is not registered."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, Message

from fedprune import NoRoundCompleted, Result, RunConfig, federate
from fedprune.engines.flower.grid import grid_port
from fedprune.engines.flower.messages import packet_in
from fedprune.engines.flower.node_config import device_of
from fedprune.options.refusal import Refused
from fedprune.secagg.keys import keys_of
from fedprune.secagg.packets import call_of, table_bytes
from fedprune.secagg.terms import terms_of
from tests.runs import tiny
from tests.secagg.signers import MADE, line, signed_up, written
from tests.server.grids import FakeGrid

Made = Callable[..., Any]
RUN = {"clients": 3, "cohort": 3, "rounds": 1, "warmup": 0, "end": 1, "local_steps": 1}
RUN |= {"secure": "secagg", "secure_minimum": 2, "min_clients": 2, "timeout": 2.0, "sparsity": 0.0}


@pytest.fixture
def registered(devices: Made, tmp_path: Path) -> Callable[..., FakeGrid]:
    """Three devices with keys; node 79 - p holds partition p."""
    signed_up(tmp_path, range(3), "P-384")

    def made(**rest: Any) -> FakeGrid:
        grid: FakeGrid = devices(3, **rest)
        for p in range(3):
            grid.contexts[79 - p].node_config |= {
                "signing-key": str(tmp_path / f"{p}.key"),
                "signers": str(tmp_path / "signers"),
            }
        return grid

    return made


def run_on(grid: Any, config: RunConfig) -> Result:
    return federate(config, grid_port(grid, config))


def told(result: Result) -> dict[int, str]:
    return {f["partition"]: f["reason"] for row in result.rows for f in row["failures"]}


@pytest.mark.slow
def test_keys_of_supernodes_change_no_sum(registered, devices):
    config = tiny(**RUN)
    grid = registered()
    signed, plain = run_on(grid, config), run_on(devices(3), config)
    assert told(signed) == {}
    assert signed.summary["weights_digest"] == plain.summary["weights_digest"]
    assert signed.rows[-1]["loss"] == plain.rows[-1]["loss"]
    sums = grid.kinds(79).count("query.keys")
    traffic = (
        signed.state.book.traffic,
        plain.state.book.traffic,
    )
    more, less = (t.up + t.down + t.evaluation for t in traffic)
    assert more - less == 96 * 3 * sums * (1 + 4 * 3), "up once, down to everyone in four stages"


@pytest.mark.slow
def test_a_device_of_another_key_is_named_and_the_others_go_on(registered, tmp_path):
    """It is who it says by its own file of signers; the others' say something else."""
    key = MADE["P-384"]()
    others = (tmp_path / "signers").read_text().splitlines()
    own = [text for text in others if not text.endswith(" 1")]
    (tmp_path / "own").write_text("\n".join([*own, line(key, 1)]))
    grid = registered()
    grid.contexts[78].node_config |= {
        "signing-key": written(key, tmp_path / "own.key"),
        "signers": str(tmp_path / "own"),
    }
    result = run_on(grid, tiny(**RUN))
    assert result.rows[0]["answered"] == 2
    assert told(result) == {1: "keys that others do not know as its SuperNode's"}
    assert {f["field"] for f in result.rows[0]["failures"]} == {"keys"}


@pytest.mark.slow
def test_a_device_alone_with_keys_says_whom_it_does_not_know(devices, registered):
    grid = devices(3)
    grid.contexts[79] = registered().contexts[79]
    result = run_on(grid, tiny(**RUN))
    assert result.rows[0]["answered"] == 2
    assert list(told(result)) == [0]
    assert told(result)[0].endswith("client 1 (no signature), client 2 (no signature)")


@dataclass
class Lying(FakeGrid):
    """A server that shows one device other keys in every stage after the first."""

    config: Any = None
    bend: Callable[[dict[int, bytes], Any], dict[int, bytes]] = lambda roster, _: roster
    gave: int = 0

    def _reply(self, message: Message) -> Message | None:
        buffers = message.content.array_records["buffers"]
        lied = message.metadata.dst_node_id == 79 and "roster" in buffers
        if lied:
            call = call_of(packet_in(message))
            terms = terms_of(self.config, call.session, call.members)
            shown = self.bend(dict(call.roster), terms)
            data = table_bytes({p: {p: keys} for p, keys in shown.items()})
            buffers["roster"] = Array("uint8", (len(data),), "fedprune.bytes", data)
        reply = super()._reply(message)
        if lied and reply is not None and reply.has_content():
            self.gave += len(reply.content.array_records["buffers"])
        return reply


SEED = bytes(range(32))
LIES: dict[str, Callable[[dict[int, bytes], Any], dict[int, bytes]]] = {
    "makes up all others": lambda roster, terms: {
        p: keys if p == 0 else keys_of(SEED[p:] + SEED[:p], terms).as_bytes
        for p, keys in roster.items()
    },
    "replaces one": lambda roster, terms: (
        roster | {1: keys_of(SEED, terms).as_bytes + roster[1][128:]}
    ),
    "swaps two": lambda roster, _: roster | {1: roster[2], 2: roster[1]},
    "takes the signatures off": lambda roster, _: {p: keys[:128] for p, keys in roster.items()},
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_to_a_device_gets_nothing_of_it(registered, lie):
    config = tiny(**RUN)
    grid = Lying(registered().contexts, config=config, bend=LIES[lie])
    result = run_on(grid, config)
    assert grid.gave == 0
    assert told(result)[0].startswith("keys that are not signed by who is in this device's signers")
    assert "client 1 (" in told(result)[0]
    assert result.rows[0]["answered"] == 2


def test_devices_with_signers_answer_nothing_in_the_open(registered):
    with pytest.raises(NoRoundCompleted) as nothing:
        run_on(registered(), tiny(**RUN | {"secure": "none", "secure_minimum": None}))
    said = told(nothing.value.result)
    assert sorted(said) == [0, 1, 2]
    assert all(
        "this device has signers" in why and "allowed: secagg" in why for why in said.values()
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"signers": None}, "signers: not given, while signing-key is; allowed: both"),
        ({"signing-key": None}, "signing-key: not given, while signers is; allowed: both"),
        ({"signers": "/no/where"}, r"signers: cannot be read \(No such file or directory\)"),
        ({"signing_key": "x"}, "signing_key: no such key of --node-config; allowed: partition-id,"),
        ({"partition-id": 1}, "the line of partition 1 is of another key than signing-key"),
        ({"partition-id": 5}, "signers: no line for partition 5"),
    ],
    ids=str,
)
def test_a_node_config_that_cannot_be_is_told_to_the_server_too(registered, changes, words, caplog):
    grid = registered()
    config = {k: v for k, v in (grid.contexts[79].node_config | changes).items() if v is not None}
    with pytest.raises(Refused, match=words) as error:
        device_of(config)
    grid.contexts[79].node_config = config
    result = run_on(grid, tiny(**RUN | {"clients": 6}))
    said = str(result.rows[0]["failures"]) + str(result.rows[0].get("notices", ""))
    assert error.value.told in said
    assert f"this node cannot take part: {error.value.told}" in caplog.text
    assert "Traceback" not in caplog.text
