"""Fewer channels between the layers of a decoder: the residual path, and what reads and writes it.

A norm that divides by the root mean square does not see a rotation. So if what writes residual
states is rotated, and what reads them is rotated back, with the norms' weights put into it, the
model says what it said (Ashkboos et al. 2024, SliceGPT, arXiv 2401.15024, theorem 1); and of
rotated states the last channels can be left out. The paper rotates every block by a matrix of its
own, and keeps Q_l^T Q_(l+1) on the shortcuts; here one rotation serves all blocks, and what is left
is a plain, narrower model of the same family.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedprune.structure.edits import Edit
from fedprune.structure.families.catalog import FAMILIES
from fedprune.structure.families.family import Family, Frame
from fedprune.structure.layer_kinds import family_name
from fedprune.structure.matrices import own_sizes


@dataclass(frozen=True)
class ResidualPath:
    """What of a decoder runs along its residual path, by the names of its parameters.

    Attributes:
        decoder: path of the module with the blocks.
        width: channels.
        table: the embeddings, (vocabulary, width), the first to write to it.
        read: weights whose columns read it, in model order, to the norm's weight before them.
        written: weights whose rows, and biases whose numbers, are added to it.
        norms: the paths of the norms.
        tied: heads that are the table itself, by their own names.
    """

    decoder: str
    width: int
    table: str
    read: Mapping[str, str]
    written: tuple[str, ...]
    norms: tuple[str, ...]
    tied: tuple[str, ...]


def residual_path(model: nn.Module) -> ResidualPath:
    """The residual path of a decoder, whatever was cut out of its blocks.

    Raises:
        ValueError: it is no model whose residual states can be rotated.
    """
    family, decoder = _decoder_of(model)
    named = dict(model.named_parameters(remove_duplicate=False))
    path = next(p for p, m in model.named_modules() if m is decoder)
    table, last = f"{path}.embed_tokens.weight", f"{path}.norm.weight"
    read, written = dict[str, str](), [table]
    for number in range(len(decoder.layers)):
        for readers, norm, writer in _sublayers(family, f"{path}.layers.{number}"):
            read |= {n: f"{norm}.weight" for r in readers for n in _weights(r, 0) if n in named}
            written += [n for n in (*_weights(writer, 1), f"{writer}.bias") if n in named]
    read |= {f"{head}.weight": last for head in _heads(model, decoder)}
    norms = {n.removesuffix(".weight"): n for n in read.values()}
    _check({n: named[n] for n in (*read, *norms.values(), *written)}, model, norms, family)
    tied = tuple(n for n in read if named[n] is named[table])
    return ResidualPath(path, named[last].shape[0], table, read, tuple(written), tuple(norms), tied)


def _decoder_of(model: nn.Module) -> tuple[Family, Any]:
    settings: Any = getattr(model, "config", None)
    family = FAMILIES.get(getattr(settings, "model_type", ""))
    decoder = getattr(model, "base_model", None)
    if family is None or not family.norms or decoder is None or decoder is model:
        able = ", ".join(f.model_type for f in FAMILIES.values() if f.norms)
        raise ValueError(
            f"reduce='slice': {type(model).__name__} is no model with a head whose states can be "
            f"rotated; allowed: such of {able}"
        )
    return family, decoder


def _sublayers(family: Family, block: str) -> Iterator[tuple[list[str], str, str]]:
    """The layers of each sub-layer that read, the norm before them, and the layer that writes.

    By their paths, whether or not they are still there.
    """
    for sublayer in family.sublayers.values():
        assert isinstance(sublayer.frame, Frame)  # of the families with `norms`
        for child, norm in sublayer.frame.norms.items():
            inner = f"{block}.{child}"
            readers = [f"{inner}.{row}" for row in sublayer.rows]
            yield readers, f"{block}.{norm}", f"{inner}.{sublayer.column}"


def _weights(layer: str, factor: int) -> tuple[str, str]:
    """Names that a layer's weight may have: its own, or of one of two factors in its place."""
    return f"{layer}.weight", f"{layer}.{factor}.weight"


def _heads(model: nn.Module, decoder: nn.Module) -> list[str]:
    """The linear layers behind the decoder."""
    inside = {id(m) for m in decoder.modules()}
    linear = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [p for p, m in linear if id(m) not in inside]


def _check(
    parameters: Mapping[str, nn.Parameter], model: nn.Module, norms: Iterable[str], family: Family
) -> None:
    """Refuse what would have to change and is frozen, and norms of another kind."""
    frozen = [n for n, p in parameters.items() if not p.requires_grad]
    if frozen:
        raise ValueError(
            f"reduce='slice': {frozen[0]} is frozen, and would have to be rotated; allowed: a "
            "model in which it is not"
        )
    for path in norms:
        kind = family_name(model.get_submodule(path))
        if kind != family.norms:
            raise ValueError(f"reduce='slice': {path} is no {family.norms}; allowed: one")


def width_left(model: nn.Module, part: float) -> int:
    """How many channels stay if at most this part goes: the least multiple of the heads for that.

    LLaMA's config takes no other width, whatever the size of a head is.
    """
    settings: Any = model.config
    heads, width = int(settings.num_attention_heads), residual_path(model).width
    least = (1.0 - part) * width - 1e-9 * width
    return min(width, int(-(-least // heads)) * heads)


def slice_channels(model: nn.Module, edit: Edit) -> None:
    """Leave the decoder at ``edit.path`` the ``edit.kept[0]`` first channels, in place.

    The head is a matrix of its own from then on, for it reads through a norm whose weight is put
    into it. Norms divide as if the channels that go were there, and 0: by their epsilon, and by
    the weight that `fedprune.redundancy.principal` gives them.

    Raises:
        ValueError: no such decoder, or no number of its channels.
    """
    found = residual_path(model)
    if found.decoder != edit.path or len(edit.kept) != 1 or not 1 <= edit.kept[0] <= found.width:
        raise ValueError(
            f"edit 'slice' of {edit.path!r}: {edit.kept}; allowed: one number from 1 to "
            f"{found.width}, of {found.decoder!r}"
        )
    (width,) = edit.kept
    for name in (*found.read, found.table):
        _put(model, name, model.get_parameter(name)[:, :width])
    for name in {*found.written, *found.read.values()} - {found.table}:
        _put(model, name, model.get_parameter(name)[:width])
    _follow(model, found, width)


def _put(model: nn.Module, name: str, values: Tensor) -> None:
    path, _, own = name.rpartition(".")
    setattr(model.get_submodule(path), own, nn.Parameter(values.detach().clone()))


def _follow(model: Any, found: ResidualPath, width: int) -> None:
    """Let the modules' numbers and the model's config say how wide it is now."""
    before, settings = model.config, copy.deepcopy(model.config)  # others may have the same one
    for key, value in sliced_keys(before, width).items():
        setattr(settings, key, value)
    for path in found.norms:
        model.get_submodule(path).variance_epsilon = settings.rms_norm_eps
    model.get_submodule(found.table.rpartition(".")[0]).embedding_dim = width
    for module in model.modules():
        for name, number in own_sizes(module).items():
            setattr(module, name, number(module))
        if vars(module).get("hidden_size") == found.width:
            module.hidden_size = width
        if vars(module).get("config") is before:
            module.config = settings


def sliced_keys(settings: Any, width: int) -> dict[str, Any]:
    """The keys of a decoder's config that change when only so many channels are left.

    A norm divides by the root of the mean over fewer channels, so its weight makes up for that, and
    its epsilon counts as much more: of d channels w are left, and x/sqrt(Σx²/d + e) is
    sqrt(d/w)·x/sqrt(Σx²/w + e·d/w).
    """
    before = settings.hidden_size
    head = getattr(settings, "head_dim", None) or before // settings.num_attention_heads
    return {
        "hidden_size": width,
        "head_dim": head,
        "rms_norm_eps": settings.rms_norm_eps * before / width,
        "tie_word_embeddings": False,
    }
