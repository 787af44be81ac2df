"""What of a model the files of its folder hold, and which classes its head was trained for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Size, nn

from fedprune.options.refusal import counted
from fedprune.structure.families.family import Need


def notes_of_files(
    model: nn.Module, about: Mapping[str, Any], name: str, need: Need, *, classifies: bool
) -> tuple[str, ...]:
    """What is to be said of a model of transformers that was loaded: a sentence each.

    Its classes are still called as in the folder; `about` is ``output_loading_info``.

    Raises:
        ValueError: the files lack weights beside a head of output, or hold them in other shapes;
            or the classes' names are those of the data in another order.
    """
    missing = sorted(about["missing_keys"])
    allowed = "allowed: a folder whose config fits its weights"
    if {key for key, _ in model.named_parameters()} <= set(missing):
        raise ValueError(f"model={name!r}: its files hold none of its weights; {allowed}")
    if lacking := [key for key in missing if _is_of_body(model, key)]:
        raise ValueError(f"model={name!r}: its files have no {_some(lacking)}; {allowed}")
    replaced = _replaced(about["mismatched_keys"], name, need) if classifies else ()
    fresh = [key for key in missing if not _is_of_body(model, key)]
    begin = (f"the files of {name} have no {_some(fresh)}: begun at random",) if fresh else ()
    brought = classifies and not (fresh or replaced)
    renamed = _renamed(model, name, need) if brought else ()
    extra = sorted(key for key in about["unexpected_keys"] if _is_of_body(model, key))
    unused = (f"of the files of {name} the model has no {_some(extra)}: left out",) if extra else ()
    return (*replaced, *begin, *renamed, *unused)


def _is_of_body(model: Any, key: str) -> bool:
    """Whether a tensor is of what all tasks share; poolers are not, whatever they lie in."""
    body = model.base_model_prefix
    return hasattr(model, body) and key.startswith(f"{body}.") and "pooler" not in key


def _some(keys: Iterable[str]) -> str:
    first, *others = keys
    return f"{first} and {counted(len(others), 'other tensor')}" if others else first


def _replaced(
    mismatched: Iterable[tuple[str, Size, Size]], name: str, need: Need
) -> tuple[str, ...]:
    """The note of a head of other classes; of each tensor are known its name and both shapes."""
    unlike = sorted(mismatched)
    for key, saved, wanted in unlike:
        if wanted[0] != need.classes or saved[1:] != wanted[1:]:
            raise ValueError(
                f"model={name!r}: {key} is {tuple(saved)} in the file, and {tuple(wanted)} by its "
                "config; allowed: a folder whose config fits its weights"
            )
    if not unlike:
        return ()
    classes = counted(unlike[0][1][0], "class", "classes")
    return (
        f"the head of {name} was saved with {classes}, the data has {need.classes}: it begins "
        "afresh, and the saved one is not used",
    )


def _renamed(model: Any, name: str, need: Need) -> tuple[str, ...]:
    """The note of a trained head whose classes are called otherwise now."""
    saved = [str(word) for _, word in sorted(model.config.id2label.items())]
    called = list(need.names)
    unnamed = all(re.fullmatch(r"LABEL_\d+", word) for word in saved)
    if len(called) < 2 or unnamed or saved == called:
        return ()
    if sorted(saved) == sorted(called):
        raise ValueError(
            f"model={name!r}: its head was saved for the classes in the order {', '.join(saved)}, "
            f"here it is {', '.join(called)}; allowed: --class-names {','.join(saved)}"
        )
    return (
        f"the head of {name} was saved for the classes {', '.join(saved)}, which are "
        f"{', '.join(called)} now: it goes on from its weights",
    )
