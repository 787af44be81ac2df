"""A task's model and loss on a few examples: what they say of themselves against what they do."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from itertools import islice

import torch

from fedprune.client.tokens import special_tokens_of
from fedprune.client.trial_client import TrialClient, takes_long
from fedprune.options.refusal import refuse
from fedprune.randomness import seeded
from fedprune.redundancy.moments import measurable
from fedprune.scores.catalog import scores_of
from fedprune.scores.inputs import rows_of
from fedprune.structure.edits import Edit
from fedprune.structure.groups import input_of
from fedprune.structure.reach import unaccounted
from fedprune.structure.tables import embedding_path
from fedprune.structure.vocabulary import cut_vocabulary
from fedprune.tasks.causality import leak, logits_of, reads_padding
from fedprune.tasks.declared import Declared
from fedprune.tasks.later import each_shard
from fedprune.tasks.task import Part, examples
from fedprune.tensors.models import load_into

PASSES = 64  # How many examples may go through until every layer has been called


def try_losses(trial: TrialClient) -> None:
    """Refuse a loss that is not what its task says, and labels that it cannot take.

    A model is refused that sees later tokens, reads the padding of texts, or fails on an example
    without data.
    """
    client, declared = trial.client, Declared(trial.client.task, trial.client.config)
    declared.check_names(client.shard.train)
    model, (batch,) = client.model.eval(), client.moved(iter([client.shard.train]))
    with seeded(0, "rehearsal"):
        one = {name: t[:1] for name, t in batch.items()} if takes_long(client.layout) else None
        loss = declared.check_loss(model, batch, one)
    parts = (
        (f"shard {p}'s {name}", getattr(shard, name))
        for p, shard in each_shard(trial.others)
        for name in ("train", "validation", "test")
    )
    declared.check_labels(parts, loss, batch)
    with torch.no_grad():
        declared.check_sum(model, batch, loss)
        found = leak(model, client.task.loss, batch)
        padded = reads_padding(model, client.task.loss, batch)
    c = client.config
    key, value = ("model", c.model) if c.model else ("task", c.task)
    if padded:
        what = "padding moves what it says of a text"
        refuse(key, value, what, "a classifier that leaves out what the attention mask hides")
    if found:
        refuse(
            key,
            value,
            f"{found} moves the logits before it: the model reads what it is to predict",
            "a causal model (of an encoder's family: with is_decoder true in its config.json), "
            "or a task that hides symbols (masked-language-modelling)",
        )
    _check_dummy(trial, batch)


@torch.no_grad()
def try_vocabulary(trial: TrialClient) -> None:
    """Refuse a model whose logits are not those of the same tokens once one that is unused is gone.

    Such as one that multiplies by its table by hand: its logits would be of other tokens.
    """
    client, task = trial.client, trial.client.task
    ids = [client.shard.train[name] for name in task.tokens if name in client.shard.train]
    if client.config.vocabulary != "used" or client.config.init or not ids:
        return
    (batch,), cut = client.moved(iter([client.shard.train])), copy.deepcopy(client.model).eval()
    path = embedding_path(cut)
    size = len(cut.get_submodule(path).weight)  # type: ignore[arg-type]
    marks, unknown = special_tokens_of(task, client.config, cut)
    there = {*marks, *torch.cat([t.flatten() for t in ids]).tolist()}
    gone = next((i for i in range(size) if i not in there), None)
    if gone is None:
        return
    kept = tuple(i for i in range(size) if i != gone)
    cut_vocabulary(cut, Edit("vocab", path, kept, str(unknown)))
    before, after = (logits_of(m, task.loss, batch)[0] for m in (client.model.eval(), cut))
    if before is None or after is None or before.shape[-1] < size:
        return
    same = before.shape == after.shape
    if not same or not torch.allclose(before[..., kept], after[..., kept], atol=1e-4, rtol=1e-4):
        what = f"without the rows of {path} that nobody uses its logits are of other tokens"
        allowed = "full, or a head of output that is an nn.Linear"
        refuse("vocabulary", "used", what, allowed)


@torch.no_grad()
def _check_dummy(trial: TrialClient, batch: Part) -> None:
    """The example without data goes through the loss, also as long a text as there can be."""
    client, c = trial.client, trial.client.config
    if client.task.dummy is None:
        return
    (dummy,) = client.moved(iter([client.task.dummy(c)]))
    client.task.loss(client.model, dummy)
    texts = [name for name in client.task.tokens[:1] if name in dummy and c.length is not None]
    for name in texts:
        marks = batch.get("attention", torch.zeros_like(batch[name]))[:1] == 1
        for token in batch[name].unique()[:2]:  # one of them is not the padding
            full = {**dummy, name: torch.where(marks, batch[name][:1], token)}
            try:
                client.task.loss(client.model, full)
            except (IndexError, RuntimeError) as error:
                refuse("length", c.length, f"a text as long fails: {error}", "a smaller one")


def try_inputs(trial: TrialClient) -> None:
    """Refuse weights whose inputs would be summed and cannot all be seen, by name."""
    client, model = trial.client, trial.client.model.eval()
    load_into(model, trial.weights)

    @torch.no_grad()
    def passed(batch: Part) -> None:
        client.task.loss(model, batch)

    for key, names in _summed(trial).items():
        passes = (functools.partial(passed, batch) for batch in client.moved(_some(trial)))
        lost = unaccounted(model, names, passes)
        if lost:
            name, why = next(iter(lost.items()))
            more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
            value = vars(client.config)[key]
            allowed = f"--exclude {name}, or another {key}"
            refuse(key, value, f"the inputs of {name} cannot be summed: {why}{more}", allowed)


def _some(trial: TrialClient) -> Iterator[Part]:
    """The trial's batch, then single examples of one partition after the other."""
    yield trial.client.shard.train
    parts = [shard.train for _, shard in islice(each_shard(trial.others), PASSES)]
    for i in range(PASSES):
        part, at = parts[i % len(parts)], i // len(parts)
        if at < examples(part):
            yield {name: t[at : at + 1] for name, t in part.items()}


def _summed(trial: TrialClient) -> dict[str, Sequence[str]]:
    """By option, the weights whose inputs it has summed."""
    c, layout = trial.client.config, trial.client.layout
    names, out = layout.prunable, dict[str, Sequence[str]]()
    shapes: set[str] = set()
    for ask in scores_of(c.plugin)[c.score].asks:
        shapes |= ask.shapes(layout, names, c.unit, c.probes or 0).keys()
    if c.sparsity != 0.0:
        out["score"] = [n for n, of in input_of(layout, names).items() if rows_of(of) in shapes]
    if c.sparsity != 0.0 and c.reconstruct is not None:
        out["reconstruct"] = names
    if {"dead", "merge"} & set(c.reduce) or c.rank_by == "activations":
        out["reduce"] = measurable(trial.client.model, layout)
    return {key: found for key, found in out.items() if found}
