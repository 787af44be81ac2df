import pytest
from torch import nn

from fedprune import ConfigError, RunConfig, federate, prune
from fedprune.config.sections import AllOptions
from fedprune.library.keywords import in_keywords

LINES = {
    "x; allowed: others, or --exclude 'a.weight'": "x; allowed: others, or exclude=('a.weight',)",
    "(--exclude a.weight)": "(exclude=('a.weight',))",
    "target-bytes=5: --engine inline": "target_bytes=5: engine='inline'",
    "--small-owners drop or group": "small_owners='drop' or group",
    "--client-column COLUMN, --dp-noise 0.5": "client_column=COLUMN, dp_noise=0.5",
    "larger units (--unit)": "larger units (unit=...)",
    "beside --secure there is none": "beside secure=... there is none",
    "none, --method depthfl, fjord": "none, method='depthfl', fjord",
    "--gradient-blocks true": "gradient_blocks=True",
    "the file has no --to onnx": "the file has no --to onnx",
}


@pytest.mark.parametrize("line", LINES)
def test_flags_are_keywords(line):
    assert in_keywords(line) == LINES[line]


def test_no_flag_of_an_option_is_left():
    flags = [f"--{key.replace('_', '-')}" for key in AllOptions.model_fields]
    assert "--" not in in_keywords("; ".join(flags))


SEVEN = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 0.9, "floor": 27}, "floor=27: in each of 2 tensors"),
        ({"sparsity": 0.5, "exclude": ("no.*",)}, "exclude='no.*': matches no parameter"),
        ({"sparsity": 0.5, "unit": "layer"}, "unit='layer': no layer was recognised"),
    ],
)
def test_what_a_model_does_not_go_with_is_refused_in_keywords(options, says):
    with pytest.raises(ConfigError) as refused:
        prune(SEVEN, **options)
    assert says in str(refused.value)
    assert "--" not in str(refused.value)


def test_a_run_says_so_too_and_writes_nothing(tmp_path):
    config = RunConfig(task="digits", model="mlp", method="fedpruner", engine="inline")
    with pytest.raises(ConfigError, match="method='fedpruner': no blocks were recognised"):
        federate(config, folder=tmp_path / "run")
    assert not [*tmp_path.iterdir()]
