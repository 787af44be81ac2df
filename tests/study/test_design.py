import itertools
import math
import tomllib

import pytest

from fedprune.options.refusal import ConfigError
from fedprune.study.design import design_of, read_design

BASE = {"task": "digits", "clients": 4, "rounds": 3}
METHODS = [{"score": "magnitude"}, {"name": "rows", "score": "wanda", "scope": "row"}]


def cells(base=BASE, **grid):
    return design_of({"base": base, "grid": grid}, "a study").cells


def test_there_is_a_cell_for_every_combination_in_the_order_of_the_grid():
    found = cells(method=METHODS, sparsity=[0.5, 0.8], seed=[0, 1, 2])
    labels = [tuple(map(str, c.labels.values())) for c in found]
    assert labels == list(itertools.product(["magnitude", "rows"], ["0.5", "0.8"], ["0", "1", "2"]))
    for cell in found:
        want = {"magnitude": "magnitude", "rows": "wanda"}[cell.labels["method"]]
        assert cell.config.score == want
        assert cell.config.sparsity == float(cell.labels["sparsity"])
        assert cell.config.seed == int(cell.labels["seed"])
        assert cell.config.clients == 4
    assert len({c.name for c in found}) == len({c.digest for c in found}) == len(found)


@pytest.mark.parametrize(
    ("grid", "words", "compared", "over"),
    [
        ({"seed": [0, 1], "sparsity": [0.5], "score": ["random"]}, {}, "score", "sparsity"),
        ({"alpha": [1.0], "method": METHODS}, {}, "method", ""),
        ({"score": ["random"], "alpha": [1.0, 0.1]}, {"over": "alpha"}, "score", "alpha"),
        ({"score": ["random"], "alpha": [1.0]}, {"compare": "alpha"}, "alpha", ""),
        ({"sparsity": [0.5, 0.8]}, {}, "sparsity", ""),
        ({"seed": [0, 1]}, {}, "configuration", ""),
    ],
)
def test_what_is_compared_over_what(grid, words, compared, over):
    factors = design_of({"base": BASE, "grid": grid, "study": words}, "").factors
    assert (factors.compared, factors.over) == (compared, over)


@pytest.mark.parametrize(
    ("base", "grid", "usual"),
    [
        ("", "score = ['random', 'taylor']", ("sparsity", "seed")),
        ("sparsity = 0.5", "score = ['random']", ("seed",)),
        ("seed = 1", "score = ['random']", ("sparsity",)),
        ("seed = 1", "score = ['random']\nsparsity = [0.5]", ()),
        ("", "sparsity = [0.5, 0.6]", ("seed",)),
        ("", "seed = [4]", ()),
        ("", "a = [{score = 'taylor', threshold = 0.1}, {score = 'random', seed = 3}]", ()),
        ("unit = 'n:m'\nunit-shape = [2, 4]", "score = ['random']", ("seed",)),
        ("target-bytes = 9999", "score = ['random']", ("seed",)),
    ],
)
def test_what_a_file_does_not_say_is_several_sparsities_and_three_seeds(
    base, grid, usual, tmp_path
):
    (tmp_path / "s.toml").write_text(f"[base]\ntask = 'digits'\n{base}\n[grid]\n{grid}")
    design = read_design(tmp_path / "s.toml")
    assert design.usual == usual
    for name, values in {"sparsity": {0.5, 0.8, 0.9}, "seed": {0, 1, 2}}.items():
        found = {getattr(cell.config, name) for cell in design.cells}
        assert (found == values) == (name in usual)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[grid]\nseed = 3", "grid.seed=3: allowed: a list"),
        ("[grid]\nseed = []", "grid.seed=[]: allowed: a list"),
        ("[base]\ntask = 'digits'", "grid: nothing varies"),
        ("[base]\nseed = 1\n[grid]\nseed = [1, 2]", "seed: in [base] and in grid.seed"),
        ("[grid]\nseed = [1, 1]", "grid.seed: '1' is there twice"),
        ("[grid]\nm = [{score = 'random'}]\nscore = ['taylor']", "score: in grid.m and in grid"),
        ("[grid]\nscroe = ['random']", "scroe"),
        ("[grid]\nscore = ['random', 'tailor']", "seed=0: score='tailor'"),
        ("[base]\nsparsity = 1.5\n[grid]\nseed = [1]", "sparsity=1.5"),
        ("[base]\nout = 'x'\n[grid]\nseed = [1]", "out='x': every run has a folder"),
        ("[base]\nengine = 'flower'\n[grid]\nseed = [1]", "engine='flower'"),
        ("[base]\ntask = 'r8'\ninit = 'gone'\n[grid]\nseed = [1]", "init='gone': not there"),
        ("[base]\nprofiles = 'gone'\n[grid]\nseed = [1]", "seed=1: profiles='gone': cannot be"),
        ("[gird]\nseed = [1]", "gird: no table of a study"),
        ("[study]\nover = 'alpha'\n[grid]\nseed = [1]", "over='alpha': not varied"),
        ("[study]\nby = 'alpha'\n[grid]\nseed = [1]", "study.by: no such key"),
        ("grid = 3", "grid=3: not a table"),
        ("[grid", "not TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_before_anything_runs(text, said, tmp_path):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_design(tmp_path / "s.toml")
    assert said in str(error.value)
    assert "allowed: " in str(error.value)
    with pytest.raises(ConfigError, match=r"study='.*none.toml'"):
        read_design(tmp_path / "none.toml")


def test_a_digest_changes_with_what_changes_bits_and_with_nothing_else(tmp_path):
    data = tmp_path / "images.csv"
    data.write_text("text,label\na,0\nb,1\n")
    base = {"task": "text-classification", "data": str(data), "clients": 2, "split": "iid"}

    def digest(**more):
        return cells({**base, **more}, seed=[0])[0].digest

    first = digest()
    assert digest(engine="ray", workers=2) == digest(verbose=True) == digest(timeout=9.0) == first
    changed = [digest(lr=0.3), digest(rounds=3), digest(local_steps=2)]
    data.write_text("text,label\na,0\nc,1\n")
    assert len({first, *changed, digest()}) == 5
    fleet = tmp_path / "fleet.toml"
    fleet.write_text("[a]\nshare = 1\nflops = 1\nup = 1\ndown = 1\n")
    slow = digest(profiles=str(fleet))
    fleet.write_text("[a]\nshare = 1\nflops = 2\nup = 1\ndown = 1\n")
    assert digest(profiles=str(fleet)) != slow


@pytest.mark.slow
def test_the_studies_that_come_along_are_valid(request):
    files = sorted((request.config.rootpath / "simulations" / "studies").glob("*.toml"))
    assert files
    for path in files:
        grid = tomllib.loads(path.read_text())["grid"]
        assert len(read_design(path).cells) == math.prod(map(len, grid.values()))
