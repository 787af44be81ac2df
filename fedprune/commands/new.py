"""``fedprune new DIR``: a Flower app of one's own, which runs as it is."""

from __future__ import annotations

import importlib.util
import keyword
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from fedprune.config.sections import AllOptions
from fedprune.config.toml_text import FLOWERS_OWN
from fedprune.options.refusal import ConfigError, refuse

STARTER = Path(__file__).parents[1] / "starter"
"""The package that is copied: it is type-checked and tested as it lies there."""

STARTER_NAME = "fedprune.starter"
"""How its modules name each other; a copy has the name of its own package there."""

_NOT_KEYS = ("model", "plugin", "engine")
"""Options that an app with a task of its own, or Flower, decides."""

_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
description = "Federated pruning with fedprune and Flower"
requires-python = ">=3.11"
dependencies = ["fedprune[flower,data]"]

[tool.setuptools]
packages = ["{package}"]

[tool.flwr.app]
publisher = "me"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

# What `flwr run . --run-config 'rounds=4 sparsity=0.9'` may say: Flower refuses keys that are not
# here. "" means what server_app.py says.
[tool.flwr.app.config]
{keys}"""

_README = """\
# {name}

Federated pruning of a model of yours, on Flower.

| file | what of it is yours |
| --- | --- |
| `{package}/task.py` | the model, the data, the loss |
| `{package}/client_app.py` | how a client trains |
| `{package}/server_app.py` | method, score, sparsity and all other options |

```bash
python -m {package}.simulate runs/first     # in one process, in seconds; runs/first/report.html
```

On Flower, in simulation:

```bash
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1   # else Flower installs all dependencies anew
flwr run . --stream --federation-config 'num-supernodes=8 client-resources-num-cpus=1'
flwr run . --stream --run-config 'rounds=4 sparsity=0.9'
```

Results are in `runs/`, in the folder from which Flower's SuperLink was started; the log has the \
whole path. On devices: docs/devices.md of fedprune. A device reads its own data by `local` of \
`task.py`.
"""

_IGNORED = "__pycache__/\n*.egg-info/\nruns/\n*.fab\n"


def run(given: Namespace) -> int:
    """Write the app, and say how it is run."""
    folder = Path(given.folder)
    package = package_name(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"folder={str(folder)!r}: something is there; allowed: a new folder")
    for name, text in app_files(package).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    print(f"\ncd {folder} && python -m {package}.simulate     # then see README.md")
    return 0


def package_name(folder: Path) -> str:
    """The Python package of an app in a folder: its name, in small letters, with underscores.

    Raises:
        ConfigError: it is no name that Python imports, or one that is taken.
    """
    name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(
            f"folder={str(folder)!r}: no name of a Python package; allowed: letters, numbers and "
            "- or _, a letter first"
        )
    found = importlib.util.find_spec(name)
    if found is not None and found.origin is not None:
        refuse("folder", str(folder), f"{name} is a package that is installed", "another name")
    return name


def app_files(package: str) -> Mapping[str, str]:
    """The files of an app by their paths in it."""
    names = {"package": package, "name": package.replace("_", "-")}
    options = (key.replace("_", "-") for key in AllOptions.model_fields if key not in _NOT_KEYS)
    keys = "".join(f'{key} = ""\n' for key in (*FLOWERS_OWN, *options))
    modules = {p.name: p.read_text("utf-8") for p in sorted(STARTER.glob("*.py"))}
    return {
        "pyproject.toml": _PROJECT.format(keys=keys, **names),
        "README.md": _README.format(**names),
        ".gitignore": _IGNORED,
        **{f"{package}/{n}": t.replace(STARTER_NAME, package) for n, t in modules.items()},
    }
