"""Zeros that stay while other people's trainers go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook


@contextmanager
def keep_zeros(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Within the block every step of any optimizer of torch leaves removed weights at 0.0.

    It does not keep moments of an optimizer at zero, nor what is written into the weights by hand
    between two steps. A parameter that the trainer puts in the place of another is not known.

    Args:
        model: whose parameters are trained; removed ones are set to 0.0 first.
        masks: True = kept, by parameter; None: what is 0.0 now is removed, in matrices.

    Raises:
        ValueError: a mask is of no parameter, or of another shape.
    """
    clear = _clearing(model, masks)
    clear()
    with register_optimizer_step_post_hook(lambda *_: clear()):
        yield


def zeros_callback(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> Any:
    """The same as a `transformers.TrainerCallback`, for ``Trainer(callbacks=[...])``.

    Raises:
        ValueError: as `keep_zeros`.
    """
    from transformers import TrainerCallback

    clear = _clearing(model, masks)

    class KeepZeros(TrainerCallback):  # what it is called, Trainer prints
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clear()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clear()

    return KeepZeros()


def _clearing(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Callable[[], None]:
    """What sets removed weights to 0.0, wherever the model has been moved to."""
    parameters = dict(model.named_parameters())
    if masks is None:
        masks = {n: p.detach() != 0 for n, p in parameters.items() if p.dim() > 1}
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise ValueError(
                f"masks: {name} is no parameter of {type(model).__name__} of its shape"
            )
    gone = {name: ~mask for name, mask in masks.items() if not bool(mask.all())}

    def clear() -> None:
        with torch.no_grad():
            for name, where in gone.items():
                parameter = parameters[name]
                gone[name] = where = where.to(parameter.device)
                parameter.masked_fill_(where, 0.0)

    return clear
