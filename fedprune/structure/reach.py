"""Which weights are used as the weights of their layers: what statistics of inputs rest upon.

Rows of inputs are seen when a layer is called. A weight that is multiplied by hand, by a fused
attention or by an LSTM is used without that, and a layer that no batch reaches has no inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fedprune.structure.layers import groups, layers_of, parameters_of
from fedprune.tensors.hooks import removed_after


@dataclass
class _Uses(TorchFunctionMode):
    """Notes which parameters torch's functions are given outside of their own layers.

    `names` are watched, by identity; the layers of those `inside` are being called now; those
    `apart` were used apart from that.
    """

    names: Mapping[int, str]
    inside: list[str] = field(default_factory=list)
    apart: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The function's result; its arguments are noted if it makes tensors of them."""
        out = func(*args, **(kwargs or {}))
        if _has_tensor(out):  # asking for a dtype or a shape is no use
            given = [*args, *(kwargs or {}).values()]
            found = {self.names[id(a)] for a in given if id(a) in self.names}
            self.apart |= found - set(self.inside)
        return out


def _has_tensor(out: Any) -> bool:
    return isinstance(out, Tensor) or (isinstance(out, tuple) and any(map(_has_tensor, out)))


def unaccounted(
    model: nn.Module, names: Sequence[str], passes: Iterable[Callable[[], object]]
) -> dict[str, str]:
    """The weights whose inputs cannot be seen, or not all of them, and why.

    Passes are made only while some layer has not been reached.
    """
    layers = layers_of(model, names)
    waiting = {name for name, found in layers.items() if found}
    uses = _Uses({id(p): name for name, p in parameters_of(model, names).items()})
    with _calling(layers, uses.inside, waiting):
        for run in passes:
            with uses:
                run()
            if not waiting:
                break
    why = {name: "no layer is called with it" for name, found in layers.items() if not found}
    why |= dict.fromkeys(sorted(waiting), "its layer was called for no example")
    why |= dict.fromkeys(sorted(uses.apart), "it is used without calling its layer")
    grouped = [name for name, found in layers.items() if any(groups(one) > 1 for one in found)]
    return why | dict.fromkeys(grouped, "its convolution is grouped")


@contextmanager
def _calling(
    layers: Mapping[str, Sequence[nn.Module]], inside: list[str], waiting: set[str]
) -> Iterator[None]:
    """Within the block the names of the layers that are being called are in `inside`."""

    def enters(name: str) -> Callable[..., None]:
        return lambda *_: inside.append(name)

    def leaves(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            inside.remove(name)
            waiting.discard(name)

        return hook

    pairs = [(name, layer) for name, found in layers.items() for layer in found]
    hooks = [layer.register_forward_pre_hook(enters(name)) for name, layer in pairs]
    hooks += [layer.register_forward_hook(leaves(name)) for name, layer in pairs]
    with removed_after(hooks):
        yield
