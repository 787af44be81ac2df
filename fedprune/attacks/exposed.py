"""What an observer sees of a client: built by the functions that build it in a run.

A `Scene` is clients with known data, the model they were sent and a question; `message` is what one
of them really releases, after encoding, decoding and the server's checks. A `MessageProtection`
says what happens to it before somebody looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedprune.attacks.quantities import Quantity
from fedprune.attacks.scene import Scene
from fedprune.privacy.accounting import engine
from fedprune.privacy.clipping import clipped, scaled, sensitivity
from fedprune.privacy.noise import gaussian, seeded_source
from fedprune.randomness import generator
from fedprune.tensors.named import Masks, Tensors, scattered


@dataclass(frozen=True)
class MessageProtection:
    """What happens to messages before an observer sees them."""

    summary: str
    # whether each is brought to a norm first: scores scaled to 1, a change clipped to 1
    clip: bool = False
    clients: int = 1  # how many are added up
    noise: float = 0.0  # standard deviation of the noise on the sum, in sensitivities


@dataclass(frozen=True)
class Exposed:
    """What an observer has."""

    values: Tensors  # by name, float64, 0.0 where nothing is released
    clients: int = 1  # how many messages were added up
    scaled: bool = False  # the values' scale is not known to the observer
    signed: bool = False  # they may be negative, by themselves or by noise
    # where something is released; a name without a mask: everywhere
    masks: Masks = field(default_factory=dict)


def exposed(
    scene: Scene, messages: Sequence[Tensor], protection: MessageProtection, seed: int = 0
) -> Exposed:
    """What an observer sees of the first of these messages.

    Noise is Gaussian, for fixed cohorts (replacing one client). With `clients` 1 and noise the
    observer knows all other messages and has subtracted them: the worst case that differential
    privacy covers.

    Raises:
        ValueError: there are too few messages.
    """
    quantity = scene.quantity
    if len(messages) < protection.clients:
        raise ValueError(f"clients={protection.clients}: more than {len(messages)} messages")
    chosen = list(messages[: protection.clients])
    if protection.clip and not quantity.votes:
        bring = scaled if quantity.kind == "score" else clipped
        chosen = [bring(each, 1.0).double() for each in chosen]
    total = torch.stack(chosen).sum(0)
    if protection.noise:
        sd = protection.noise * _sensitivity(quantity, messages[0])
        total = total + gaussian(total.numel(), sd, seeded_source(seed, "attack noise"))
    signed = quantity.signed or protection.noise > 0
    # A change was divided by a norm that is not sent, if --clip did so, and has a factor anyway.
    unknown = protection.clip or quantity.kind == "tune"
    return _named(scene, total, protection.clients, unknown, signed)


def noise_like(scene: Scene, like: Tensor, seed: int, clients: int = 1) -> Exposed:
    """A random message of the same shape and scale, said to be of so many clients.

    No client has anything to do with it: what an attack makes of it is chance.
    """
    gen = generator(seed, "random message")
    if scene.quantity.votes:
        order = torch.randperm(like.numel(), generator=gen)
        return _named(scene, like[order], clients, True, False)
    drawn = torch.randn(like.numel(), generator=gen, dtype=torch.float64) * like.std()
    signed = scene.quantity.signed
    return _named(scene, drawn if signed else drawn.abs(), clients, True, signed)


CHANCE = "random message"


def views(
    scene: Scene, messages: Sequence[Tensor], known: Mapping[str, MessageProtection], seed: int
) -> dict[str, Exposed]:
    """What is seen of the first of the messages under each protection, and by chance."""
    found = {name: exposed(scene, messages, p, seed) for name, p in known.items()}
    return found | {CHANCE: noise_like(scene, messages[0], seed)}


def _named(scene: Scene, flat: Tensor, clients: int, unknown: bool, signed: bool) -> Exposed:
    values = scattered(flat, scene.shapes, scene.masks)
    return Exposed(values, clients, unknown, signed, scene.masks)


def _sensitivity(quantity: Quantity, votes: Tensor) -> float:
    """How far replacing one client moves a sum; of masks that keep k of d: sqrt(2·min(k, d-k))."""
    if not quantity.votes:
        return sensitivity(1.0, signed=quantity.signed, sampling="fixed")
    kept = int(votes.sum())
    return float((2.0 * min(kept, votes.numel() - kept)) ** 0.5)


def multiplier_for(epsilon: float, delta: float = 1e-5) -> float:
    """The noise multiplier of one Gaussian release with this epsilon at delta, exactly.

    Raises:
        ValueError: the package dp-accounting is missing.
    """
    pld = engine().pld
    wanted = pld.common.DifferentialPrivacyParameters(epsilon, delta)
    return float(pld.accountant.get_smallest_gaussian_noise(wanted, 1, 1.0))


def protections(epsilons: Sequence[float], clients: int) -> dict[str, MessageProtection]:
    """Those of the studies, by the names they have in their tables."""
    alone = "noise for the sum, in which the observer knows everyone else's part"
    found = {
        "plain": MessageProtection("the message as it is sent"),
        "clipped": MessageProtection("brought to norm 1", clip=True),
        f"sum of {clients}": MessageProtection("a secure sum, exact", clients=clients),
    }
    for epsilon in epsilons:
        noise = multiplier_for(epsilon)
        found[f"epsilon {epsilon:g}"] = MessageProtection(alone, clip=True, noise=noise)
    if epsilons:
        noise = multiplier_for(epsilons[-1])
        both = f"sum of {clients}, epsilon {epsilons[-1]:g}"
        found[both] = MessageProtection("a secure sum with noise", True, clients, noise)
    return found
