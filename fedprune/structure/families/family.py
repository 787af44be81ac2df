"""What this library knows of an architecture of `transformers`: one `Family` value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

PURPOSES = ("causal", "masked", "seq2seq", "classify", "tag", "image")
"""What a model is for: its head of output, and the AutoModelFor... that loads it."""

HEAD = 16
"""Width of an attention head of the small models."""


@dataclass(frozen=True)
class Need:
    """What a task asks of a model.

    Attributes:
        purpose: a name in `PURPOSES`.
        vocabulary: how many symbols there are; 0 for "image".
        length: the longest sequence; of images the pixels of a side.
        pad: id of the padding.
        end: id that ends a written text, for "seq2seq".
        classes: how many, for "classify", "tag" and "image".
        names: what they are called, in their order.
        depth: blocks of a stack; T5 has two stacks of so many.
        width: of the hidden states; a multiple of `HEAD`, one attention head for each.
        channels: of images.
    """

    purpose: str
    vocabulary: int
    length: int
    pad: int = 0
    end: int | None = None
    classes: int = 0
    names: tuple[str, ...] = ()
    depth: int = 2
    width: int = 64
    channels: int = 3

    @property
    def heads(self) -> int:
        """How many attention heads."""
        return self.width // HEAD

    @property
    def gated(self) -> int:
        """Neurons of a gated feed-forward layer: three matrices about as large as two of 4."""
        return self.width * 11 // 4


@dataclass(frozen=True)
class SmallModel:
    """A small model of a family, to be trained from scratch.

    `prepare` is called with a model that was just initialised.
    """

    summary: str
    purposes: tuple[str, ...]
    config: Callable[[Need], Any]
    prepare: Callable[[nn.Module], None] = lambda _: None


def config_maker(name: str, sizes: Callable[[Need], dict[str, Any]]) -> Callable[[Need], Any]:
    """`SmallModel.config`, by the name of its class in transformers: only who builds one pays."""

    def config(need: Need) -> Any:
        import transformers  # takes seconds

        return getattr(transformers, name)(**sizes(need))

    return config


@dataclass(frozen=True)
class Frame:
    """How a sub-layer that is a module of its own sits in its block.

    Attributes:
        norms: the norm before it, by the name that the block gives the sub-layer; none where all
            norms come after what was added up.
        dropout: its own dropout after the reading layer, "" if the block has it.
        rest: the other values that it returns: names of arguments handed on, "" for None.
        after: the norm of what it returns, which has nothing to do where that is 0 (Gemma 2).
        before: whether those norms come before it, told of the block: OPT knows both ways.
    """

    norms: Mapping[str, str]
    dropout: str = ""
    rest: tuple[str, ...] = ()
    after: Mapping[str, str] = field(default_factory=dict)
    before: Callable[[Any], bool] = lambda _: True


def equal_pieces(made: int, read: int) -> tuple[int, ...]:
    """As many pieces as what is read goes into what is made: GPT-2's queries, keys and values."""
    count = max(1, made // read)
    return (made // count,) * count


def queries_first(made: int, read: int) -> tuple[int, ...]:
    """As many queries as are read, and keys and values, of which groups of queries share one."""
    return (read, (made - read) // 2, (made - read) // 2)


@dataclass(frozen=True)
class Inline:
    """How a sub-layer that is no module of its own, or ends in a norm, falls silent when it goes.

    Attributes:
        maker: path of the part that makes the units: it hands on what it is given.
        answers: whether that part gives back a pair, the states and None.
        norms: of the module the norms before it: they go where `before` says so.
        before: whether its norms come before it, told of the module.
    """

    maker: str
    answers: bool = False
    norms: tuple[str, ...] = ()
    before: Callable[[Any], bool] = lambda _: True


@dataclass(frozen=True)
class SubLayer:
    """An attention or a feed-forward layer: who makes its units' outputs and who reads them.

    Attributes:
        kind: of its units, "head" or "neuron".
        rows: paths of the layers whose outputs are the units', from the module. Those it does not
            have are skipped.
        column: path of the one layer that reads them.
        width: how many rows of a producer belong to a unit; for attention the size of a head.
        pieces: of a layer that makes several things (queries, keys and values; gate and up) the
            rows of each, in their order, from how many rows it makes and how many are read.
        together: the pieces of a unit lie together (GPT-NeoX), not the units of a piece (GPT-2).
        alike: by the module's path what tells that two heads look at the same places: "products"
            of their queries and keys; "rows", where positions or norms come between the two; ""
            where nothing does.
        frame: how it sits in its block, or what in it falls silent.
        after_cut: called with the module and the original indices of the units that stayed.
        stand_in: what takes the place of the module when all units are gone, where others read
            more of it than its output; None: nothing does.
    """

    kind: str
    rows: tuple[str, ...]
    column: str
    width: Callable[[Any], int] = lambda _: 1
    pieces: Callable[[int, int], tuple[int, ...]] = equal_pieces
    together: bool = False
    alike: Callable[[str], str] = lambda _: "products"
    frame: Frame | Inline = field(default_factory=lambda: Frame({}))
    after_cut: Callable[[nn.Module, Tensor], None] = lambda _module, _kept: None
    stand_in: Callable[[nn.Module], nn.Module | None] = lambda _: None


Sizes = Mapping[str, Callable[[Any], int]]
"""A module's own numbers, by attribute, as its weights' shapes say them."""


@dataclass(frozen=True)
class ConfigKeys:
    """What a family's config can say of a smaller model.

    Attributes:
        neurons: the key of the number of feed-forward neurons, or from a feed-forward layer's path
            to its key.
        layers: the key of the number of blocks of a stack, by the stack's path without the prefix
            of a head of output.
        heads: from the config and the heads (KV groups) kept in each attention to the keys that
            say so; None: it cannot say that.
        by_layer: keys of lists with an entry for each block, where the config has them.
        biases: by the name of a layer that may have no bias the key that gives it one.
        experts: the key of the number of experts of every mixture; "": it has none.
        numbered: from the config and which blocks stay to the keys that say by number which blocks
            are of another kind.
    """

    neurons: str | Callable[[str], str]
    layers: Mapping[str, str]
    heads: Callable[[Any, int], dict[str, int]] | None = None
    by_layer: tuple[str, ...] = ("layer_types",)
    biases: Mapping[str, str] = field(default_factory=dict)
    experts: str = ""
    numbered: Callable[[Any, Sequence[bool]], dict[str, Any]] = lambda _config, _stays: {}


@dataclass(frozen=True)
class Family:
    """An architecture: how its units are cut, removed and exported, and small models of it.

    Modules are known by the class of `transformers` whose forward they run
    (`fedprune.structure.layer_kinds.family_name`).

    Attributes:
        model_type: its name in a config of transformers.
        sublayers: its attentions and feed-forward layers, by class.
        config: what its config can say of a smaller model.
        small: small models to be trained from scratch, by their name for ``--model``.
        mixtures: its mixtures of experts, by class (`fedprune.structure.experts`).
        sizes: the numbers of modules that follow their weights' shapes, by class.
        passes: the forward of a block of which nothing is left, by class of block; classes that
            are not here pass their input on by themselves.
        tidy: called with a model after all edits.
        kept_tables: tables that a cut model keeps whole, as a plain model has them: by their name
            in the cut model the name in the plain one and the values.
        norms: the class of its norms, where rotating what runs between the layers changes nothing
            (`fedprune.structure.slicing`): each divides by the root mean square, then multiplies by
            a weight, and sub-layers add their answers up as they are. "": elsewhere.
    """

    model_type: str
    sublayers: Mapping[str, SubLayer]
    config: ConfigKeys
    small: Mapping[str, SmallModel]
    mixtures: tuple[str, ...] = ()
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    passes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    tidy: Callable[[nn.Module], None] = lambda _: None
    kept_tables: Callable[[nn.Module], Mapping[str, tuple[str, Tensor]]] = lambda _: {}
    norms: str = ""
