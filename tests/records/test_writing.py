"""Two runs do not write into one folder."""

import pytest

from fedprune import federate
from fedprune.options.refusal import ConfigError
from fedprune.server.watch import Watch
from tests.runs import tiny


class Killed(Exception):
    """Ends a run in its middle."""


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
