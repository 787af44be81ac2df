"""``fedprune audit``: what a finished run gives away, beside what it claims."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Screen

from fedprune.attacks.canary import audit
from fedprune.attacks.membership_report import (
    HOW,
    LIMITS,
    RATE_COLUMNS,
    RATES,
    cells,
    curves,
    rates_of,
)
from fedprune.attacks.page import Passage, Picture, Table, write_findings
from fedprune.attacks.replayed import replayed
from fedprune.attacks.roc import Sides
from fedprune.commands.members import by_shadows, by_threshold, people_of
from fedprune.commands.subject import Subject, subject
from fedprune.config.terms import accounting_terms_of
from fedprune.options.refusal import refuse
from fedprune.privacy.accounting_terms import SIMULATED
from fedprune.privacy.noise import seeded_source
from fedprune.privacy.tally import AMPLIFICATION
from fedprune.privacy.totals import INFINITY
from fedprune.report.privacy import privacy_sentences, release_table, statement_of
from fedprune.report.reading import NO_VALUE, Run, read_run
from fedprune.runtime.files import write_atomically

JSON_NAME = "audit.json"
PAGE_NAME = "audit.html"

COORDINATES = 4
"""A canary's own: noise is the same on every coordinate, so that more of them change nothing."""

ATTACKED = (
    "Members are the training rows of every client that was asked to train, the others are the "
    "test rows of all clients: if a task's test rows differ from its training rows in more than "
    "chance (later text of the same author), an attack sees that too. The threshold looks at how "
    "sure the model is of an example and needs nothing else (Yeom et al. 2018, arXiv 1709.01604). "
    "LiRA compares with models that were trained without it (Carlini et al. 2022, arXiv "
    "2112.03570, offline)."
)
SHADOWS = (
    "LiRA's {shadows} shadow models were trained in one place, with the run's final mask and "
    "number of steps, and without its noise: shadows nearer to the run could find more."
)
_CANARIES = (
    "Every noised sum in the ledger is made again, with canary clients in it, by the functions "
    "that runs clip and noise with. The bound is what the guesses prove of epsilon, with 95 % "
    "confidence; the cap is what they would prove if all were right. A bound above the claim would "
    "be a proof that the promise is not kept; one below it proves nothing."
)


def run(arguments: Namespace) -> int:
    """Audit, write both files into the run's folder, and print; 1 where a claim is refuted."""
    looked = subject(arguments.run_folder, keys={"plugin": arguments.plugin})
    if looked.run is None:
        refuse("run", looked.name, "a model, not a run", "the folder of a finished run")
    run_ = read_run(looked.run)
    sides = _attacked(looked, run_, arguments.shadows)
    members = {name: rates_of(each) for name, each in sides.items()}
    canaries = _canaries_of(looked, run_, arguments.canaries)
    sections = [
        _membership(sides, members, arguments.shadows),
        _canary(canaries),
        Passage("Ledger", (*privacy_sentences(run_), *statement_of(run_)), release_table(run_)),
    ]
    found = {"membership": members, "shadows": arguments.shadows, "canaries": canaries}
    write_atomically(looked.run / JSON_NAME, json.dumps(found, indent=1).encode())
    command = f"fedprune audit {looked.name} --shadows {arguments.shadows}"
    title = f"{looked.config.task}: what the run gives away"
    text = ("Attacks on a finished run, and what its ledger says. " + LIMITS,)
    write_findings(looked.run / PAGE_NAME, title, text, sections, command, "fedprune audit")
    _show(sections[:2], privacy_sentences(run_))
    return int(refuted(canaries))


def _attacked(looked: Subject, run_: Run, shadows: int) -> dict[str, Sides]:
    people = people_of(looked, run_.rows)
    sides = {"threshold": by_threshold(looked, people)}
    if shadows:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("shadow models", total=shadows)
            sides["LiRA"] = by_shadows(looked, people, shadows, lambda: progress.advance(task))
    return sides


def _membership(sides: dict[str, Sides], members: dict[str, Any], shadows: int) -> Passage:
    rows = [[name, *cells(figures)] for name, figures in members.items()]
    first = next(iter(members.values()))
    text = [ATTACKED, f"{first['members']:,} members, {first['others']:,} others. {HOW}"]
    if first["others"] < 1 / min(RATES):
        text.append(f"0.1 % of {first['others']} others is less than one: none is accused there.")
    text += [SHADOWS.format(shadows=shadows)] if shadows else []
    caption = "True against false positive rate, both on a logarithmic scale; dotted: chance."
    picture = Picture("membership", "Members found", caption, curves(sides))
    return Passage(
        "Membership", tuple(text), Table(["attack", *RATE_COLUMNS], rows, ("attack",)), (picture,)
    )


def _canaries_of(looked: Subject, run_: Run, count: int) -> dict[str, Any]:
    """What is claimed and what canaries prove; no bound where nothing was noised."""
    terms, privacy = accounting_terms_of(looked.config), run_.summary.get("privacy") or {}
    mechanism = replayed(run_.ledger, terms, privacy.get("account", AMPLIFICATION))
    claim = {"total": privacy.get("total", INFINITY), "covered": INFINITY, "delta": terms.delta}
    if mechanism is None:
        return {**claim, "bound": None}
    source = seeded_source(looked.config.seed, "audit")
    found = audit(
        mechanism,
        terms.delta,
        source,
        canaries=count,
        size=COORDINATES * count,
        seed=looked.config.seed,
    )
    covered = privacy.get("epsilon", run_.ledger[-1]["epsilon"])
    sums = sum(len(drawn.sums) * drawn.times for drawn in mechanism.draws)
    noise = SIMULATED if terms.simulated else ""
    return {**claim, "covered": covered, **vars(found), "sums": sums, "unit": terms.unit} | {
        "noise": noise
    }


def refuted(canaries: dict[str, Any]) -> bool:
    """Whether the canaries prove a larger epsilon than is claimed for what is covered."""
    bound, covered = canaries["bound"], canaries["covered"]
    return bound is not None and covered != INFINITY and bound > covered


def _canary(found: dict[str, Any]) -> Passage:
    columns = ["claimed in all", "claimed of what is covered", "bound", "cap", "right guesses"]
    claims = [_epsilon(found[key]) for key in ("total", "covered")]
    if found["bound"] is None:
        table = Table(columns, [[*claims, NO_VALUE, NO_VALUE, NO_VALUE]])
        return Passage("Canaries", ("Nothing of this run was noised: there is no claim.",), table)
    guesses = f"{found['right']} of {found['guesses']}"
    row = [*claims, f"{found['bound']:.2f}", f"{found['cap']:.2f}", guesses]
    verdict = (
        "The bound is above the claim: the promise is not kept."
        if refuted(found)
        else ("The bound is not above the claim.")
    )
    text = (
        _CANARIES,
        f"{found['sums']:,} noised sums, {found['canaries']:,} canaries, each one {found['unit']}, "
        f"at delta {found['delta']:g}. {verdict}",
        *([f"The claim is of {found['noise']}."] if found["noise"] else []),
    )
    return Passage("Canaries", text, Table(columns, [row]))


def _epsilon(value: float | str) -> str:
    return "infinite" if isinstance(value, str) else f"{value:.2f}"


def _show(sections: list[Passage], ledger: list[str]) -> None:
    console = Console(highlight=False)
    for section in sections:
        assert section.table is not None  # these two have one
        console.print(f"\n[bold]{section.title}[/bold]")
        screen = Screen(box=None, pad_edge=False)
        for column in section.table.columns:
            screen.add_column(column, justify="left" if column in section.table.words else "right")
        for row in section.table.rows:
            screen.add_row(*(cell.replace("[", "\\[") for cell in row))
        console.print(screen)
    for text in ledger:
        console.print(f"\n{text}", markup=False)
