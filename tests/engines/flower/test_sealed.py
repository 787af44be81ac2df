"""Secure sums over a grid: the bits of one process, and devices that keep their secrets.

With keys of their SuperNodes: the same sums, and nothing for who is not registered.
"""

import json
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from flwr.app import Array, ConfigRecord

from fedprune import NoRoundCompleted
from fedprune.config import to_toml
from fedprune.engines.flower.messages import packet_in
from fedprune.engines.flower.node_config import device_of
from fedprune.options.refusal import Refused
from fedprune.secagg.keys import KEY, keys_of
from fedprune.secagg.packets import call_of, table_bytes, table_of
from fedprune.secagg.terms import terms_of
from tests.runs import played, tiny
from tests.secagg.signers import MADE, line, signed_up, written
from tests.server.grids import FakeGrid, an_error, at, failures, no_reply, run_on


def sealed(**changes):
    """One round on three devices, of which two are enough."""
    sizes = {"model": "mlp", "clients": 3, "cohort": 3, "rounds": 1, "warmup": 0, "end": 1}
    few = {"local_steps": 1, "secure_minimum": 2, "min_clients": 2}
    return tiny(**{**sizes, **few, "secure": "secagg", **changes})


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_workers_give_the_bits_of_one_process(workers, count):
    config = tiny(secure="secagg", cohort=4, model="mlp", rounds=3, end=3)
    seen = run_on(workers(count), config)
    assert seen.rows == played(config).rows
    assert seen.summary["shard_sizes"] == []


def test_workers_do_not_pass_off_derived_keys_as_secret(workers):
    config = tiny(secure="secagg", noise_source="secret", engine="flower", rounds=1, sparsity=0.0)
    with pytest.raises(NoRoundCompleted, match="keeps no secret"):
        run_on(workers(1), config)


@pytest.mark.slow
def test_devices_add_up_what_nobody_saw(devices):
    grid, three = devices(3), {"rounds": 3, "warmup": 1, "end": 2}
    result = run_on(grid, sealed(**three))
    plain = run_on(devices(3), sealed(**three, secure="none", secure_minimum=None))
    assert result.summary["mask_digest"] == plain.summary["mask_digest"]
    assert result.rows[-1]["loss"] == pytest.approx(plain.rows[-1]["loss"], rel=1e-6)
    assert failures(result) == []
    kinds = grid.kinds(79)
    assert {"query.keys", "query.shares", "train.tune", "query.unmask"} <= set(kinds)
    assert kinds.count("query.keys") == kinds.count("query.unmask")


@pytest.mark.slow
def test_a_device_forgets_its_seed_when_the_sum_is_open(devices):
    seen = []

    def look(asked, question, reply):
        record = grid.contexts[asked].state.config_records.get("secure")
        if question.metadata.message_type != "query.hello":
            seen.append(len(record["seed"]))
            assert (len(record["seed"]) == 0) == (question.metadata.message_type == "query.unmask")
        return reply

    grid = devices(3, meddle=look)
    run_on(grid, sealed())
    assert {0, 32} == set(seen)


def test_two_devices_are_too_few_and_nobody_is_asked(devices):
    grid = devices(2)
    with pytest.raises(NoRoundCompleted, match="2 clients are fewer than secure-minimum=3"):
        run_on(grid, sealed(secure_minimum=3))
    assert set(grid.kinds(79)) == {"query.hello"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["query.shares", "train.tune", "query.unmask"])
def test_a_reply_that_is_lost_is_given_again(devices, kind):
    """An error in place of one device's reply to a stage: the device says the same once more."""
    lost = []

    def lose(question, reply):
        lost.append(kind)
        return reply if lost[1:] else an_error(question, reply)

    grids = devices(3, meddle=at(78, kind, lose)), devices(3)
    result, right = (run_on(grid, sealed()) for grid in grids)
    assert lost
    assert result.rows[0]["weights_digest"] == right.rows[0]["weights_digest"]
    assert failures(result) == failures(right)
    more, less = result.state.book.traffic, right.state.book.traffic
    assert more.down + more.evaluation > less.down + less.evaluation, "it went out twice"
    assert more.up == less.up


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["query.keys", "query.shares", "train.tune", "query.unmask"])
def test_a_device_that_never_replies_in_a_stage_leaves_the_others(devices, stage):
    """Two of three cannot restore what the third one masked: they begin again by themselves."""

    result = run_on(devices(3, meddle=at(78, stage, no_reply)), sealed())
    assert result.rows[0]["answered"] == 2
    assert 1 in {f["partition"] for f in failures(result)}
    if stage in {"query.keys", "query.shares"}:
        pair = devices(3)
        del pair.contexts[78]
        right = run_on(pair, sealed()).summary
        assert result.summary["weights_digest"] == right["weights_digest"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "changes",
    [{"summed": [0, 1]}, {"summed": []}, {"bytes_up": -1}, {"failures": "none"}, "a short vector"],
    ids=str,
)
def test_a_reply_that_is_malformed_counts_as_none(devices, changes):
    def spoilt(_, reply):
        fields, buffers = (reply.content[name] for name in ("fields", "buffers"))
        if isinstance(changes, str):
            total = buffers["total"].data[:-8]
            buffers["total"] = Array("uint8", (len(total),), "bytes", total)
        else:
            said = json.loads(fields["about"]) | changes
            reply.content["fields"] = ConfigRecord({"about": json.dumps(said)})
        return reply

    result = run_on(devices(3, meddle=at(78, "train.tune", spoilt)), sealed())
    why = [f["reason"] for f in failures(result) if f["partition"] == 1]
    assert why
    assert isinstance(changes, dict) or "integers, expected" in why[0]
    assert result.rows[0]["answered"] == 2


@dataclass
class Twice(FakeGrid):
    """A server that asks one device for its vector under two configurations."""

    other: str = ""
    gave: list[bool] = field(default_factory=list)

    def _reply(self, message):
        if message.metadata.dst_node_id != 79 or message.metadata.message_type != "train.tune":
            return super()._reply(message)
        fields = message.content.config_records["fields"]
        given = str(fields["config"])
        for text in (self.other, given):
            fields["config"] = text
            reply = super()._reply(message)
            self.gave.append("total" in reply.content.array_records["buffers"])
        return reply


@pytest.mark.slow
def test_a_device_masks_no_second_vector_under_another_configuration(devices):
    """The masks would be the same: with a learning rate of nothing, what is left is its change."""
    config = sealed()
    other = to_toml(config.model_copy(update={"lr": 1e-9}))
    grid = Twice(devices(3).contexts, other=other)
    result = run_on(grid, config)
    assert grid.gave[:2] == [True, False]
    assert result.rows[0]["answered"] == 2


def each(change):
    """Of a table, every entry changed."""
    return lambda table: {p: {q: change(d) for q, d in row.items()} for p, row in table.items()}


def for_strangers(table):
    return {p: {9 + q: data for q, data in row.items()} for p, row in table.items()}


LOW_ORDER = bytes(KEY)
LIES = {
    "a channel key of low order": ("query.keys", "keys", each(lambda d: LOW_ORDER + d[KEY:])),
    "a masking key of low order": (
        *("query.keys", "keys"),
        each(lambda d: d[:KEY] + LOW_ORDER + d[2 * KEY :]),
    ),
    "one key twice": ("query.keys", "keys", each(lambda d: 2 * d[:KEY] + d[2 * KEY :])),
    "shares that nobody can open": ("query.shares", "shares", each(lambda d: os.urandom(len(d)))),
    "shares of a megabyte": ("query.shares", "shares", each(lambda _: bytes(2**20))),
    "shares for strangers": ("query.shares", "shares", for_strangers),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_a_stage_costs_the_liar_and_blames_no_other(devices, lie):
    kind, name, bend = LIES[lie]

    def bent(_, reply):
        buffers = reply.content.array_records["buffers"]
        data = table_bytes(bend(table_of(buffers[name].data)))
        buffers[name] = Array("uint8", (len(data),), "fedprune.bytes", data)
        return reply

    config = sealed(sparsity=0.0, noise_source="secret")
    result = run_on(devices(3, meddle=at(78, kind, bent)), config)
    (row,) = result.rows
    assert (row["answered"], row["undone"]) == (2, None)
    assert {(f["partition"], f["field"]) for f in row["failures"]} == {(1, name)}


SIGNED = {"timeout": 2.0, "sparsity": 0.0}


@pytest.fixture
def registered(devices, tmp_path):
    """Three devices with keys; node 79 - p holds partition p."""
    signed_up(tmp_path, range(3), "P-384")
    grid = devices(3)
    for p in range(3):
        own = {"signing-key": f"{tmp_path / str(p)}.key", "signers": str(tmp_path / "signers")}
        grid.contexts[79 - p].node_config |= own
    return grid


def told(result):
    return {f["partition"]: f["reason"] for f in failures(result)}


@pytest.mark.slow
def test_keys_of_supernodes_change_no_sum(registered, devices):
    config = sealed(**SIGNED)
    signed, plain = run_on(registered, config), run_on(devices(3), config)
    assert told(signed) == {}
    assert signed.summary["weights_digest"] == plain.summary["weights_digest"]
    assert signed.rows[-1]["loss"] == plain.rows[-1]["loss"]
    sums = registered.kinds(79).count("query.keys")
    traffic = (run.state.book.traffic for run in (signed, plain))
    more, less = (t.up + t.down + t.evaluation for t in traffic)
    assert more - less == 96 * 3 * sums * (1 + 4 * 3), "up once, down to everyone in four stages"


@pytest.mark.slow
def test_a_device_of_another_key_is_named_and_the_others_go_on(registered, tmp_path):
    """It is who it says by its own file of signers; the others' say something else."""
    key = MADE["P-384"]()
    others = (tmp_path / "signers").read_text().splitlines()
    own = [text for text in others if not text.endswith(" 1")]
    (tmp_path / "own").write_text("\n".join([*own, line(key, 1)]))
    mine = {"signing-key": written(key, tmp_path / "own.key"), "signers": str(tmp_path / "own")}
    registered.contexts[78].node_config |= mine
    result = run_on(registered, sealed(**SIGNED))
    assert result.rows[0]["answered"] == 2
    assert told(result) == {1: "keys that others do not know as its SuperNode's"}
    assert {f["field"] for f in result.rows[0]["failures"]} == {"keys"}


@pytest.mark.slow
def test_a_device_alone_with_keys_says_whom_it_does_not_know(devices, registered):
    grid = devices(3)
    grid.contexts[79] = registered.contexts[79]
    result = run_on(grid, sealed(**SIGNED))
    assert result.rows[0]["answered"] == 2
    assert list(told(result)) == [0]
    assert told(result)[0].endswith("client 1 (no signature), client 2 (no signature)")


@dataclass
class Lying(FakeGrid):
    """A server that shows one device other keys in every stage after the first."""

    config: Any = None
    gave: int = 0

    def _reply(self, message):
        buffers = message.content.array_records["buffers"]
        lied = message.metadata.dst_node_id == 79 and "roster" in buffers
        if lied:
            call = call_of(packet_in(message))
            terms = terms_of(self.config, call.session, call.members)
            own = {p: keys_of(SEED[p:] + SEED[:p], terms).as_bytes for p in call.members}
            shown = own | {0: call.roster[0]}
            data = table_bytes({p: {p: keys} for p, keys in shown.items()})
            buffers["roster"] = Array("uint8", (len(data),), "fedprune.bytes", data)
        reply = super()._reply(message)
        if lied and reply is not None and reply.has_content():
            self.gave += len(reply.content.array_records["buffers"])
        return reply


SEED = bytes(range(32))


def test_a_server_that_lies_to_a_device_gets_nothing_of_it(registered):
    """It makes up all others; what else it may say: `tests.secagg.test_register`."""
    config = sealed(**SIGNED)
    grid = Lying(registered.contexts, config=config)
    result = run_on(grid, config)
    assert grid.gave == 0
    assert told(result)[0].startswith("keys that are not signed by who is in this device's signers")
    assert "client 1 (" in told(result)[0]
    assert result.rows[0]["answered"] == 2


def test_devices_with_signers_answer_nothing_in_the_open(registered):
    with pytest.raises(NoRoundCompleted) as nothing:
        run_on(registered, sealed(**SIGNED, secure="none", secure_minimum=None))
    said = told(nothing.value.result)
    assert sorted(said) == [0, 1, 2]
    for why in said.values():
        assert "this device has signers" in why
        assert "allowed: secagg" in why


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"signers": None}, "signers: not given, while signing-key is; allowed: both"),
        ({"signing_key": "x"}, "signing_key: no such key of --node-config; allowed: partition-id,"),
        ({"partition-id": 1}, "the line of partition 1 is of another key than signing-key"),
        ({"partition-id": 5}, "signers: no line for partition 5"),
    ],
    ids=str,
)
def test_a_node_config_that_cannot_be_is_told_to_the_server_too(registered, changes, words, caplog):
    first = registered.contexts[79]
    config = {k: v for k, v in (first.node_config | changes).items() if v is not None}
    with pytest.raises(Refused, match=words) as error:
        device_of(config)
    first.node_config = config
    result = run_on(registered, sealed(**SIGNED, clients=6))
    said = str(result.rows[0]["failures"]) + str(result.rows[0].get("notices", ""))
    assert error.value.told in said
    assert f"this node cannot take part: {error.value.told}" in caplog.text
    assert "Traceback" not in caplog.text
