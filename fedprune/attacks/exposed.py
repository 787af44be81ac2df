"""What an observer sees of a client: built by the functions that build it in a run.

A `Scene` is clients with known data, the model they were sent and a question; `message` is what one
of them really releases, after encoding, decoding and the server's checks. A `MessageProtection`
says what happens to it before somebody looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedprune.client.host import Host, build_host
from fedprune.client.partition_answers import released
from fedprune.config import configure
from fedprune.privacy.accounting import engine
from fedprune.privacy.clipping import clipped, scaled, sensitivity
from fedprune.privacy.noise import gaussian, seeded_source
from fedprune.protocol.checks import check_summand
from fedprune.protocol.coded_answers import decode_answer
from fedprune.protocol.forms import Form, fitting, form_of
from fedprune.protocol.messages import Question
from fedprune.randomness import generator
from fedprune.scores.gradients import gradient, square, taylor
from fedprune.server.state import first_state
from fedprune.tasks.task import Part, Shard
from fedprune.tensors import Masks, Tensors, masked, scattered

_Each = Callable[[Tensor, Tensor], Tensor]
"""From a weight and a client's gradient to what is released of it, up to a factor."""


@dataclass(frozen=True)
class Quantity:
    """What a client is asked for.

    Attributes:
        summary: one line.
        keys: configuration keys that make a client release it.
        signed: whether its values may be negative.
        each: what it is of a weight and a gradient; None: it is not of gradients at all.
        kind: of the question.
        votes: flags are released, not values.
        root: the values are sums of squares of what the observer is after.
    """

    summary: str
    keys: Mapping[str, Any]
    signed: bool = False
    each: _Each | None = None
    kind: str = "score"
    votes: bool = False
    root: bool = False


def _absolute(w: Tensor, g: Tensor) -> Tensor:
    return gradient(w, g, 1).abs()


def _product(w: Tensor, g: Tensor) -> Tensor:
    return taylor(w, g, 1).abs()


QUANTITIES: dict[str, Quantity] = {
    "change": Quantity(
        "a client's change of the weights after one step of SGD",
        {"local_steps": 1, "optimizer": "sgd", "lr": 0.1},
        signed=True,
        each=lambda w, g: -gradient(w, g, 1),
        kind="tune",
    ),
    "g": Quantity(
        "Σ g, --score gradient",
        {"score": "gradient"},
        signed=True,
        each=lambda w, g: gradient(w, g, 1),
    ),
    "|g|": Quantity(
        "|Σ g|, --score gradient --combine mean-absolute",
        {"score": "gradient", "combine": "mean-absolute"},
        each=_absolute,
    ),
    "g²": Quantity(
        "Σ g² over examples, --score second_moment_per_example",
        {"score": "second_moment_per_example"},
        each=lambda w, g: square(w, g, 1),
        root=True,
    ),
    "|g·w|": Quantity(
        "|w·Σ g|, --score taylor --combine mean-absolute",
        {"score": "taylor", "combine": "mean-absolute"},
        each=_product,
    ),
    "Σx²": Quantity("Σ x² of inputs, --score wanda", {"score": "wanda"}, root=True),
    "votes": Quantity(
        "a client's own mask by |g·w|, --score taylor --combine votes",
        {"score": "taylor", "combine": "votes"},
        each=_product,
        votes=True,
    ),
}


@dataclass(frozen=True)
class Scene:
    """Clients, what they were sent, and what they are asked.

    Attributes:
        quantity: what they release.
        host: serves them; partition p holds the p-th part.
        question: with the weights and the mask that everyone knows.
    """

    quantity: Quantity
    host: Host
    question: Question

    @property
    def form(self) -> Form:
        """What an answer consists of."""
        return form_of(self.question, self.host.config, self.host.layout)

    @property
    def masks(self) -> Masks:
        """The masks of what is released, by name."""
        return fitting(self.shapes, self.question.masks)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of what is released, by name."""
        if not self.quantity.votes:
            return dict(self.form.shapes)
        return {n: self.host.layout.shapes[n] for n in self.host.layout.prunable}


def scene(
    name: str,
    parts: Sequence[Part],
    keys: Mapping[str, Any],
    *,
    weights: Tensors | None = None,
    masks: Masks | None = None,
    sparsity: float = 0.9,
) -> Scene:
    """The scene in which each part is one client's training data.

    Args:
        name: in `QUANTITIES`.
        parts: one a client, of equal numbers of examples.
        keys: configuration: task, model, seed.
        weights: the state that was sent; default: the seeded initialisation.
        masks: what is left of the model; default: all of it.
        sparsity: of the clients' own masks, for votes.
    """
    quantity = QUANTITIES[name]
    examples = max(next(iter(part.values())).shape[0] for part in parts)
    few = {"clients": len(parts), "cohort": len(parts), "hosts": 1, "batch_size": examples}
    config = configure({**few, **keys, **quantity.keys})
    host = build_host(config, {p: Shard(part, part, part) for p, part in enumerate(parts)})
    state = first_state(host.model, host.layout)
    masks = state.masks if masks is None else masks
    question = Question(
        quantity.kind,
        1,
        masked(state.weights if weights is None else weights, masks),
        masks,
        score=config.score if quantity.kind == "score" else "",
        sparsity=sparsity if quantity.votes else None,
        lr=config.lr,
    )
    return Scene(quantity, host, question)


def message(scene: Scene, partition: int) -> Tensor:
    """What one client's packet holds once a server has read and checked it, flat float64."""
    form, question = scene.form, scene.question
    packet = released(scene.host, question, partition)
    given = decode_answer(packet, question, form.voters, own=form.own)
    check_summand(given.values, given.weight, given.totals, form, given.statistics)
    if not scene.quantity.votes:
        return given.values.double()
    assert given.votes is not None  # the form asks for them
    return given.votes.double()


@dataclass(frozen=True)
class MessageProtection:
    """What happens to messages before an observer sees them.

    Attributes:
        summary: one line.
        clip: whether each is brought to a norm first: scores scaled to 1, a change clipped to 1.
        clients: how many are added up.
        noise: standard deviation of the noise on the sum, in sensitivities.
    """

    summary: str
    clip: bool = False
    clients: int = 1
    noise: float = 0.0


@dataclass(frozen=True)
class Exposed:
    """What an observer has.

    Attributes:
        values: by name, float64, 0.0 where nothing is released.
        clients: how many messages were added up.
        scaled: the values' scale is not known to the observer.
        signed: they may be negative, by themselves or by noise.
        masks: where something is released; a name without a mask: everywhere.
    """

    values: Tensors
    clients: int = 1
    scaled: bool = False
    signed: bool = False
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
