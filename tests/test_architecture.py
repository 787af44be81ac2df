"""The shape of the tree: who imports whom, what is written down, what things are called."""

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedprune

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["fedprune", "clients", "server", "simulations"]
MODULES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
CORE = [p for p in MODULES if p.relative_to(ROOT).parts[0] == "fedprune"]
PUBLIC_FLWR = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}


def name_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULE_NAMES = {name_of(p) for p in CORE}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST, *, top_level: bool = False) -> Iterator[tuple[str, str]]:
    """(module, name) of every import that is executed; those within functions too, or not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, "") for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute here"
            yield from ((str(child.module), alias.name) for alias in child.names)
        elif not only_for_types(child) and not (top_level and isinstance(child, ast.FunctionDef)):
            yield from imports(child, top_level=top_level)


def roots(path: Path) -> set[str]:
    return {module.split(".")[0] for module, _ in imports(tree(path))}


FORBIDDEN = {
    "fedprune.engines.flower": {"ray", "clients", "server", "simulations"},
    "fedprune.engines.ray": {"clients", "server", "simulations"},
    "fedprune": {"flwr", "ray", "clients", "server", "simulations"},
    "clients": {"ray", "server", "simulations"},
    "server": {"ray", "clients", "simulations"},
    "simulations": set(),
}


def test_imports_point_one_way():
    for path in MODULES:
        place = next(p for p in FORBIDDEN if f"{name_of(path)}.".startswith(f"{p}."))
        assert not roots(path) & (FORBIDDEN[place] | {"tests", "benchmarks"}), path


def test_the_core_loads_neither_flower_nor_ray_nor_what_takes_seconds():
    code = "import sys, fedprune; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    slow = {"flwr", "ray", "transformers", "datasets", "flwr_datasets", "matplotlib", "sklearn"}
    assert not slow & set(done.stdout.split())


ORDER = [
    *("tensors", "randomness", "runtime", "options", "structure", "streaming", "tasks"),
    *("selection", "scores", "learning", "adapters", "redundancy", "codec", "privacy", "config"),
    *("protocol", "client", "secagg", "server", "methods", "rounds", "engines.inline_sums"),
    *("engines.inline", "export", "records", "opening", "report", "run", "attacks"),
    *("engines.flower", "engines.ray", "engines.choosing", "engines.sampled", "library", "study"),
    *("starter", "commands"),
]
"""The packages of the core, each of which may import those before it, and itself."""


def place_of(module: str) -> int:
    """Where the package of a module is in that order."""
    name = module.removeprefix("fedprune.")
    within = [p for p in ORDER if f"{name}.".startswith(f"{p}.")]
    return ORDER.index(max(within, key=len))


def whole(node: ast.AST) -> Iterator[tuple[str, str]]:
    """As `imports`, with those that are for types only."""
    for child in ast.walk(node):
        if isinstance(child, ast.ImportFrom):
            yield from ((str(child.module), alias.name) for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, "") for alias in child.names)


def test_imports_of_the_core_go_down_the_list_of_packages():
    """Those for types, and those within functions, too; and nothing private goes along."""
    doors = {"fedprune", "fedprune.__main__", "fedprune.engines"}
    for path in CORE:
        here = name_of(path)
        for module, name in whole(tree(path)):
            if module.split(".")[0] == "fedprune":
                assert not name.startswith("_"), f"{here} imports {name}"
                there = f"{module}.{name}" if f"{module}.{name}" in MODULE_NAMES else module
                below = here in doors or place_of(there) <= place_of(here)
                assert below, f"{here} imports {there}"


def test_modules_of_a_package_import_each_other_in_no_circle():
    needs = {
        name_of(p): {
            f"{module}.{name}" if f"{module}.{name}" in MODULE_NAMES else module
            for module, name in imports(tree(p), top_level=True)
            if module in MODULE_NAMES
        }
        for p in CORE
    }
    del needs["fedprune"]  # the front door, which none of the others goes through
    assert all("fedprune" not in wanted for wanted in needs.values())
    while needs:
        free = [name for name, wanted in needs.items() if not wanted & needs.keys()]
        assert free, f"a circle among {sorted(needs)}"
        for name in free:
            del needs[name]


def test_of_flower_only_what_is_public_but_for_one_name_in_one_place():
    strange: dict[str, set[str]] = {}
    for path in MODULES:
        for module, name in imports(tree(path)):
            if module.split(".")[0] == "flwr" and module not in PUBLIC_FLWR:
                strange.setdefault(name_of(path), set()).add(f"{module}.{name}")
    one = {"flwr.supercore.task_identity.TaskIdentity"}
    assert strange == {"fedprune.engines.ray.identity": one}


TIMED = (
    # A run's log has times, and latency is what `measure` is asked for; no bit of a result is.
    # What `process` keeps of the global generators it puts back.
    *("fedprune.run", "fedprune.export.measure", "fedprune.runtime.process"),
    # A client that hangs is found out by a clock, and so is a command that does not end.
    *("fedprune.runtime.guarding", "fedprune.runtime.ending"),
    # How long a step takes decides which engine plays a run, and no bit of it.
    *("fedprune.client.footprint", "fedprune.library.estimating"),
    # How long the runs of a study take tells how long the others may.
    "fedprune.study.playing",
)
TOLD = ("fedprune.report", "fedprune.records", "fedprune.engines", "fedprune.commands")


def test_no_clock_and_no_global_random_in_the_core():
    for path in CORE:
        name = name_of(path)
        if name in TIMED or name.startswith(TOLD):
            continue
        modules = {module.split(".")[0] for module, _ in imports(tree(path))}
        assert not modules & {"time", "datetime", "random", "secrets", "uuid"}, path
        for node in (n for n in ast.walk(tree(path)) if isinstance(n, ast.Call)):
            called, given = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
            if called == "np.random.default_rng":
                assert node.args, f"{path}: a generator of its own has a seed"
                continue
            assert not called.startswith(("np.random.", "numpy.random.")), (path, called)
            if called in {"torch.rand", "torch.randn", "torch.randperm", "torch.randint"}:
                assert "generator" in given, (path, called)
            assert called != "torch.manual_seed" or name == "fedprune.randomness", path


def test_one_module_knows_that_a_layer_of_gpt2_is_transposed():
    """Beside the one that knows the class; all others ask for a matrix, or a family."""
    knowing = {"fedprune.structure.layer_kinds", "fedprune.structure.matrices"}
    for path in CORE:
        if name_of(path) not in knowing:
            words = path.read_text(encoding="utf-8")
            assert "is_transposed" not in words, path
            assert '"conv1d"' not in words, path


VAGUE = {"util", "utils", "helper", "helpers", "base", "common", "misc", "core", "tools"}


def test_a_module_is_called_by_what_it_holds():
    ends = ("Manager", "Helper", "Handler", "Base", "Utils")
    for path in MODULES:
        words = set(path.stem.split("_"))
        assert not words & (VAGUE | {"manager", "managers", "handler", "handlers"}), path
        classes = [n.name for n in ast.walk(tree(path)) if isinstance(n, ast.ClassDef)]
        assert not [c for c in classes if c.endswith(ends)], path


def publics(node: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from publics(child)


MEANT_ALIKE = {
    **dict.fromkeys(("METHOD", "RIDER", "Memory", "Options"), "fedprune.methods."),
    **dict.fromkeys(
        ("SUMMARY", "EXAMPLES", "options", "run", "main", "script"), "fedprune.commands."
    ),
    "app": ("fedprune.engines.flower.", "fedprune.starter."),  # as Flower wants them called
    "log": "fedprune.",  # a module's logger
}
"""What several modules of a package define under one name: parts of one kind, looked up there."""


def named_at_the_top(node: ast.Module) -> Iterator[str]:
    """The public names that a module defines: not those it imports."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield child.name
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def test_a_public_name_has_one_meaning():
    """No name is defined in two modules of the core, but for the parts of one kind."""
    places: dict[str, set[str]] = {}
    for path in CORE:
        for name in named_at_the_top(tree(path)):
            spared = name_of(path).startswith(MEANT_ALIKE.get(name, " "))
            if not name.startswith("_") and not spared:
                places.setdefault(name, set()).add(name_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_what_is_public_is_documented_and_annotated():
    for path in MODULES:
        assert ast.get_docstring(tree(path)), path
        for public in publics(tree(path)):
            where = f"{name_of(path)}.{public.name}"
            # argparse's own method is the exception.
            assert where.endswith(".error") or ast.get_docstring(public), where
            if isinstance(public, ast.FunctionDef):
                given = public.args
                arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
                bare = {a.arg for a in arguments if a.annotation is None} - {"self", "cls"}
                assert not bare, where
                assert public.returns is not None, where


def test_no_function_is_longer_than_a_screen():
    for path, node in ((p, node) for p in MODULES for node in ast.walk(tree(p))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{name_of(path)}.{node.name}"


def test_every_module_of_the_core_can_be_imported():
    found = [m.name for m in pkgutil.walk_packages(fedprune.__path__, "fedprune.")]
    assert {name_of(p) for p in CORE} == {"fedprune", *found}
    for name in found:
        importlib.import_module(name)


NAMED = re.compile(r"`(fedprune(?:\.(?!json)\w+)+)")  # fedprune.json is a file of an export
FILED = re.compile(r"`((?:fedprune|tests|docs|benchmarks|simulations|clients|server)/[\w/]+\.\w+)`")


def exists(dotted: str) -> bool:
    parts = dotted.split(".")
    size = max(i for i in range(1, len(parts) + 1) if ".".join(parts[:i]) in MODULE_NAMES)
    found = importlib.import_module(".".join(parts[:size]))
    for name in parts[size:]:
        if name in getattr(found, "__annotations__", {}):
            return True  # a field
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def test_what_texts_refer_to_is_there():
    """Names and files in docstrings, comments and documents."""
    for path in [*MODULES, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*")]:
        if path.suffix in {".py", ".md"}:
            text = path.read_text(encoding="utf-8")
            assert [name for name in NAMED.findall(text) if not exists(name)] == [], path
            assert [name for name in FILED.findall(text) if not (ROOT / name).exists()] == [], path


LOWEST_FIRST = """
import importlib, json, pkgutil, sys, types

front = sys.modules["fedprune"] = types.ModuleType("fedprune")
front.__path__ = ["fedprune"]
for package in json.loads(sys.argv[1]):
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__, package + "."):
        importlib.import_module(info.name)
    own = {".".join(n.split(".")[:2]) for n in sys.modules if n.startswith("fedprune.")}
    print(json.dumps([package, sorted(own), sorted({"flwr", "ray"} & set(sys.modules))]))
"""


@pytest.mark.slow
def test_a_package_can_be_imported_without_those_above_it():
    """Each needs and loads none above it; engines and the starter alone load Flower.

    One after the other, from the lowest: what is loaded stays. There is no circle (above), so that
    it makes no difference which is first.
    """
    packages = [name_of(p) for p in CORE if p.name == "__init__.py" and p.parent.name != "fedprune"]
    with_flower = ("fedprune.engines.", "fedprune.starter")

    def place(name: str) -> tuple[bool, int]:
        found = [i for i, p in enumerate(ORDER) if f"{name}.".startswith(f"fedprune.{p}.")]
        return name.startswith(with_flower), *(found or [len(ORDER)])

    packages.sort(key=place)
    done = subprocess.run(
        [sys.executable, "-c", LOWEST_FIRST, json.dumps(packages)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    below = [f"fedprune.{name}" for name in ORDER[: ORDER.index("config")]]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [package for package, _, _ in found] == packages
    for package, own, flower in found:
        assert not flower or package.startswith(with_flower), package
        if (own_name := ".".join(package.split(".")[:2])) in below:
            assert set(own) <= set(below[: below.index(own_name) + 1]), package


def test_the_front_door_is_complete_and_documented():
    assert len(fedprune.__all__) == len(set(fedprune.__all__))
    for name in fedprune.__all__:
        thing = getattr(fedprune, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), name
    promised = {"RunConfig", "federate", "SCORES", "select", "encode_mask", "decode_mask", "load"}
    assert promised <= set(fedprune.__all__)


def test_tests_mirror_the_tree():
    """A test file of a folder of the core names a module there; names are unique among tests."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    assert len({p.name for p in files}) == len(files)
    for folder in ("tasks", "selection", "scores", "structure", "learning", "codec", "secagg"):
        for path in (ROOT / "tests" / folder).rglob("test_*.py"):
            names = path.stem.removeprefix("test_"), path.stem.removeprefix(f"test_{folder}_")
            assert any((ROOT / "fedprune" / folder).rglob(f"{n}.py") for n in names), path
