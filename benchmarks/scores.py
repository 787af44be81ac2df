"""What a score costs a client and the server, against one step of training.

    python benchmarks/scores.py [--models llama cnn] [--examples 64] [--probes 64] [--repeats 5]

The default LLaMA on windows of 64 random characters, and Fashion-MNIST's convolutional net on
random images, one thread: a pass over so many examples in one batch, against a step of AdamW on the
same batch. Seconds are medians of calls in turn in one warm process; what takes more than a second
runs once. Memory is how far a call raises the peak of a fresh process, after a small one. What is
sent is counted in numbers for every prunable weight, all of them alive.

Ablation removes heads from the LLaMA and rows from the net; the default task's LLaMA has more
weights than single ones are removed of.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from statistics import median

import torch
from at_start import apart, forget_peak, parser_of
from score_subjects import SUBJECTS, Subject

from fedprune.randomness import generator
from fedprune.runtime.process import resident
from fedprune.scores.catalog import SCORES
from fedprune.scores.score import Evidence, Probe
from fedprune.tensors.models import state_of
from fedprune.tensors.named import full_masks

STEP = "training step"
SMALL = 2


def train(subject: Subject) -> None:
    """One step of AdamW."""
    subject.model.train()
    optimizer = torch.optim.AdamW(subject.model.parameters(), 1e-3)
    loss = subject.loss(subject.model, subject.part)
    (loss.total / loss.count).backward()
    optimizer.step()
    optimizer.zero_grad()


def unit_of(name: str, subject: Subject) -> str:
    if name == "ablation":
        return subject.unit
    return (SCORES[name].units or ("weight",))[0]


def evidence_of(name: str, subject: Subject, probes: int) -> Evidence:
    """What the server has before it asks."""
    state = state_of(subject.model)
    names = subject.layout.prunable
    return Evidence(
        sums={},
        count=1.0,
        weights={n: state[n] for n in names},
        masks=full_masks(state, names),
        layout=subject.layout,
        generator=generator(0, "score"),
        probes=probes,
        unit=unit_of(name, subject),
        model=subject.model,
        dummy={key: t[:1] for key, t in subject.part.items()},
    )


def score(name: str, subject: Subject, probes: int) -> tuple[float, float, int]:
    """Seconds of the client's half, of the server's, and how many numbers are sent."""
    subject.model.eval()
    evidence = evidence_of(name, subject, probes)
    client, server, sent = 0.0, 0.0, 0
    for ask in SCORES[name].asks:
        start = time.perf_counter()
        given = {} if ask.given is None else ask.given(evidence)
        middle = time.perf_counter()
        sums = ask.collect(
            Probe(
                subject.model,
                subject.layout,
                subject.layout.prunable,
                [subject.part],
                subject.loss,
                evidence.masks,
                given,
                evidence.unit,
                probes,
            )
        )
        client, server = client + time.perf_counter() - middle, server + middle - start
        sent += sum(t.numel() for t in sums.values())
        doubles = {n: t.double() for n, t in sums.items()}
        labels = float(subject.part["labels"].numel())
        evidence = replace(evidence, sums=doubles, count=labels, given=given)
    start = time.perf_counter()
    SCORES[name].finalise(evidence)
    return client, server + time.perf_counter() - start, sent


def once(name: str, subject: Subject, probes: int) -> tuple[float, float, int]:
    """One call of a score, or one training step."""
    if name != STEP:
        return score(name, subject, probes)
    start = time.perf_counter()
    train(subject)
    return time.perf_counter() - start, 0.0, 0


def warm(name: str, subject: Subject) -> None:
    """A call on few examples, which loads what is lazy."""
    once(name, replace(subject, part={key: t[:SMALL] for key, t in subject.part.items()}), 2)


def extra_bytes(name: str, kind: str, examples: int, probes: int) -> int:
    """How far one call raises the peak, after one on few examples that loads what is lazy."""
    subject = SUBJECTS[kind](examples)
    warm(name, subject)
    forget_peak()  # what the imports took for a moment is more than a small model ever needs
    before = resident("VmHWM")
    once(name, subject, probes)
    return resident("VmHWM") - before


def contenders(subject: Subject) -> list[str]:
    """The training step and every score that can be taken on the subject."""
    names = [STEP]
    for name in SCORES:
        try:
            evidence = evidence_of(name, subject, 2)
            for ask in SCORES[name].asks:
                ask.shapes(subject.layout, subject.layout.prunable, evidence.unit, 2)
            if not SCORES[name].asks:
                SCORES[name].finalise(evidence)
            names.append(name)
        except ValueError as error:
            print(f"{name} left out: {error}")
    return names


def compare(kind: str, examples: int, probes: int, repeats: int) -> None:
    """Print one row for the training step and for every score."""
    subject = SUBJECTS[kind](examples)
    weights = sum(subject.layout.shapes[n].numel() for n in subject.layout.prunable)
    print(f"\n{kind}: {examples} examples, {weights:,} prunable weights, {probes} probes")
    names = contenders(subject)
    # Tensors come from the system and go back to it, so that no call lives on what another left.
    own = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    given = ("--examples", examples, "--probes", probes)
    memory = {n: int(apart(__file__, "--memory-of", n, kind, *given, **own)) for n in names}
    times: dict[str, list[tuple[float, float, int]]] = {n: [] for n in names}
    for n in names:
        warm(n, subject)
    for _ in range(repeats):
        for n in names:
            if not times[n] or times[n][0][0] < 1.0:
                times[n].append(once(n, subject, probes))
    step = median(t[0] for t in times[STEP])
    header = f"{'':<26} {'client s':>9} {'x step':>7} {'server s':>9} {'sent/weight':>12}"
    print(f"{header} {'extra MiB':>10} {'x step':>7}")
    for n in names:
        client, server = (median(t[i] for t in times[n]) for i in (0, 1))
        sent = math.inf if n == STEP else times[n][0][2] / weights
        print(
            f"{n:<26} {client:>9.4f} {client / step:>7.2f} {server:>9.4f}"
            f" {'' if n == STEP else f'{sent:.4f}':>12}"
            f" {memory[n] / 2**20:>10.1f} {memory[n] / max(1, memory[STEP]):>7.2f}",
            flush=True,
        )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--probes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.memory_of:
        name, kind = args.memory_of
        print(extra_bytes(name, kind, args.examples, args.probes))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread")
    for kind in args.models:
        compare(kind, args.examples, args.probes, args.repeats)


if __name__ == "__main__":
    main()
