"""Two runs do not write into one folder."""

import contextlib
import threading
import time

import pytest

from fedprune import federate
from fedprune.options.refusal import ConfigError
from fedprune.records.writing import only_writer, wait_for_writer
from fedprune.server.watch import Watch
from tests.runs import Killed, tiny


@pytest.mark.slow
def test_a_folder_has_one_writer_at_a_time(tmp_path):
    """A second is refused in one line and changes nothing; after the first was ended it goes on."""
    config, folder = tiny(model="mlp", rounds=2, warmup=0, end=1, local_steps=1), tmp_path / "run"
    whole = federate(config)

    def second(*_):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError, match=r"^folder=.*another run writes there now; [^\n]*$"):
            federate(config, folder=folder, resume=True)
        assert before == {path: path.read_bytes() for path in before}
        raise Killed

    with pytest.raises(Killed):
        federate(config, folder=folder, watch=Watch(row=second))
    again = federate(config, folder=folder, resume=True)
    assert again.summary["weights_digest"] == whole.summary["weights_digest"]


def test_who_waits_for_a_writer_is_told_once_and_goes_on_when_it_ends(tmp_path):
    """Or when its time is over: then taking the folder says who holds it."""
    told, events = [], []

    def write():
        time.sleep(0.5)
        events.append("ended")
        holds.close()

    holds = contextlib.ExitStack()
    holds.enter_context(only_writer(tmp_path))
    wait_for_writer(tmp_path, 0.3, lambda: told.append("waiting"))
    with pytest.raises(ConfigError, match="another run writes there now"), only_writer(tmp_path):
        pass
    assert told == ["waiting"]
    writer = threading.Thread(target=write)
    writer.start()
    wait_for_writer(tmp_path, 60, lambda: told.append("again"))
    events.append("gone on")
    writer.join()
    wait_for_writer(tmp_path, 60, lambda: told.append("never"))
    assert events == ["ended", "gone on"]
    assert told == ["waiting", "again"]
