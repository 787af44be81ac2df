"""A finished run that is resumed tells nothing a second time."""

import pytest

from fedprune import federate
from fedprune.client.host import build_host
from fedprune.engines.inline import inline_port
from tests.runs import Spy, tiny


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [{}, {"dp": "client", "dp_noise": 1.0, "panel": 2}, {"dp": "client", "dp_noise": 1.0}],
    ids=str,
)
def test_a_finished_run_is_resumed_without_a_release(keys, tmp_path):
    config = tiny(model="mlp", rounds=2, warmup=0, end=1, local_steps=1, **keys)
    whole = federate(config, folder=tmp_path / "run")
    books = [tmp_path / "run" / name for name in ("privacy.jsonl", "privacy.sha256")]
    before = [path.read_bytes() for path in books]
    spy = Spy(inline_port(build_host(config)))
    again = federate(config, spy.port, folder=tmp_path / "run", resume=True)
    assert not keys or not spy.asked, "what got noise, or went out beside it, is not asked again"
    assert [path.read_bytes() for path in books] == before
    for key in ("privacy", "naive", "weights_digest"):
        assert again.summary[key] == whole.summary[key], key
