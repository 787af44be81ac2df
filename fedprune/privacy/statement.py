"""What a run protects and what it does not, in words, from what really left.

It states what "How to DP-fy ML" (Ponomareva et al. 2023, arXiv 2303.00654) and NIST SP 800-226 ask
for: unit, neighbours, delta, sampling, what is covered, who is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedprune.options.refusal import counted
from fedprune.privacy.accounting_terms import REPLACE, SIMULATED, AccountingTerms
from fedprune.privacy.mechanisms import is_noised, mechanism_of
from fedprune.privacy.tally import AMPLIFICATION, PARTICIPATION

Line = Mapping[str, Any]


def statement(
    terms: AccountingTerms,
    lines: Sequence[Line],
    epsilon: float | str | None = None,
    account: str = PARTICIPATION,
) -> str:
    """Who may see what, whose part is hidden, under which assumptions, and what is not hidden.

    Epsilon is of all that is covered; None: the last one in the ledger. It is by the bound
    `account`: "participation" or "amplification".

    Returns:
        Paragraphs, with an empty line between them.
    """
    if epsilon is None:
        epsilon = lines[-1]["epsilon"] if lines else 0.0
    parts = (
        _guarantee(terms, lines, epsilon),
        _coverage(lines),
        _sampling(terms, lines, account),
        _views(protection(terms, lines)),
        f"Trusted: {PROTECTIONS[protection(terms, lines)].trusted}." + _colluders(terms),
        "Not hidden, or not hidden from: " + "; ".join(_gaps(terms, lines)) + ".",
    )
    return "\n\n".join(filter(None, parts))


def protection(terms: AccountingTerms, lines: Sequence[Line]) -> str:
    """Which protection was in force, of `PROTECTIONS`: what happened, not what was asked for."""
    noised = [(mechanism_of(line["mechanism"]), line["unit"]) for line in lines if is_noised(line)]
    used = {mechanism.protection[unit] for mechanism, unit in noised}
    if terms.secure != "none" and "secure sums with noise" not in used:
        return "secure sums"
    ranked = ("secure sums with noise", "noise on examples", "central noise", "randomised response")
    return next((name for name in ranked if name in used), "no protection")


def _guarantee(terms: AccountingTerms, lines: Sequence[Line], epsilon: float | str) -> str:
    if not any(map(is_noised, lines)):
        if lines and all(line["covered"] for line in lines):
            return "Nothing that left was made from protected data."
        return (
            "No differential privacy: nothing that left was noised, and epsilon is infinite. What "
            "a model or a sum tells about its data is bounded by nothing."
        )
    whose = "one example of one client" if terms.unit == "example" else "one client's whole data"
    other = "being another" if terms.relation == REPLACE else "being there or not"
    told = f"{epsilon:.4g}" if isinstance(epsilon, float | int) else epsilon
    simulated = f" ({SIMULATED})" if terms.simulated else ""
    text = (
        f"What is covered hides {whose}: epsilon = {told} at delta = {terms.delta:g}{simulated} "
        f"bounds what it changes in all that can be seen, under the relation {terms.relation} (the "
        f"part {other}). All arms of the run count, as they see the same data."
    )
    if terms.unit == "example":
        text += (
            " An example is a row of a client's data; its content alone decides whether it is in "
            "the training, validation or test part (a plug-in's task may split otherwise). Of "
            "running text an example is one window of --length symbols. A passage that lies in "
            "several windows is not hidden, nor is a shift of the whole text. Each copy of an "
            "example is an example of its own."
        )
    if terms.unit == "client" and terms.delta * terms.population >= 0.1:
        text += f" Delta is large: it should be far below 1/{terms.population}, one of the clients."
    return text


def _coverage(lines: Sequence[Line]) -> str:
    """Which quantities are noised, which cost nothing, and which nothing covers."""
    noised = _names(line["quantity"] for line in lines if is_noised(line))
    free = _names(line["quantity"] for line in lines if line["covered"] and not is_noised(line))
    open_ = [line for line in lines if not line["covered"]]
    told = [f"Noised: {noised}." if noised else "", f"At no cost: {free}." if free else ""]
    if open_:
        reasons = dict.fromkeys(f"{x['quantity']} ({x['reason'] or 'as they are'})" for x in open_)
        told.append(
            f"Covered by nothing: {'; '.join(reasons)}. With these the run's total is infinite: "
            "epsilon speaks of the covered part alone."
            if noised
            else f"Not protected: {'; '.join(reasons)}."
        )
    return " ".join(filter(None, told))


def _names(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _sampling(terms: AccountingTerms, lines: Sequence[Line], account: str) -> str:
    """How cohorts were drawn, and whether that was counted as protection."""
    used = _names(line["sampling"] for line in lines if is_noised(line))
    if not used or used == "all":
        return ""
    if terms.unit == "example":
        return (
            f"Cohorts: {used}. Epsilon is that of the client with most releases. It counts that "
            "each step draws every example by chance, and does not count that clients are drawn."
        )
    if account != AMPLIFICATION:
        return (
            f"Cohorts: {used}. Epsilon is that of the client that was asked most often, by what it "
            "was asked for. Anybody may know who was drawn (the server of a secure sum does): "
            "cohorts depend on nobody's data."
        )
    seed = ", and the seed, from which it follows" if terms.simulated else ""
    return (
        f"Cohorts: {used}, and booked as that: all noisy releases of a cohort in a round are one "
        "event. Epsilon counts on nobody knowing who was drawn, and the run's folder tells it "
        f"(rounds.jsonl, privacy.jsonl{seed}): publish the model, not the folder."
    )


def _views(kind: str) -> str:
    seen = zip(PARTIES, PROTECTIONS[kind].seen, strict=True)
    return f"Seen under {kind}: " + "; ".join(f"by {who}: {what}" for who, what in seen) + "."


def _colluders(terms: AccountingTerms) -> str:
    """What it takes to open one client's vector, where sums are secure."""
    if not terms.neighbours:
        return ""
    return (
        f" In a sum of {terms.cohort} clients a server that tells clients different things needs "
        f"at least {terms.colluders} of a client's {terms.neighbours} neighbours to open its "
        f"vector, one that only looks {terms.threshold}. Clients sign who is in the sum, so that "
        "all open the same one. That is of clients whose keys are genuine: devices that know the "
        "keys of all others (signing-key and signers in their node config) compute with nobody "
        "else, whatever the server shows them; the others take the server's word."
    )


def _gaps(terms: AccountingTerms, lines: Sequence[Line]) -> list[str]:
    """What no number above speaks of."""
    used = {line["mechanism"]: mechanism_of(line["mechanism"]) for line in lines if is_noised(line)}
    gaps = [
        "a server that does not follow the protocol: it can send models that single a client out, "
        "through a secure sum too (Pasquini et al. 2022, arXiv 2111.07380)",
        "who takes part, who fails, and when answers come",
        "the task: its classes, its symbols, the scaling of its labels and the shape of the model "
        "are taken as public, and so is who holds what",
    ]
    if terms.panel:
        gaps.append(f"the data of {counted(terms.panel, 'client')} that only measure (the panel)")
    if used and terms.simulated:
        gaps.append(f"somebody who knows the seed ({SIMULATED})")
    if terms.keys_follow:
        gaps.append("somebody who knows the seed: in this simulation keys of secure sums follow")
    gaps += dict.fromkeys(how.gap for how in used.values() if how.gap)
    gaps.append("settings that were chosen by looking at results on the same data")
    gaps.append("test results in the summary, and what else is in the folder of the run")
    return gaps


PARTIES = ("the server", "other clients", "who holds the final model", "the network")


@dataclass(frozen=True)
class Protection:
    """What an honest but curious party sees, of what a guarantee is meant to cover.

    The server, other clients, and somebody who holds the final model; and who has to be honest.
    """

    server: str
    others: str = "the global model and mask of every round"
    holder: str = "the final model and mask"
    trusted: str = ""

    @property
    def seen(self) -> tuple[str, ...]:
        """What each of `PARTIES` sees."""
        return self.server, self.others, self.holder, NETWORK


NETWORK = "all that is sent, unless the connections are encrypted (TLS)"

PROTECTIONS = {
    "no protection": Protection(
        "every client's scores, votes, changes, counts and metrics, and when they came",
        trusted="everybody",
    ),
    "central noise": Protection(
        "every client's bounded messages: it adds the noise itself and is trusted",
        "the global model and mask of every round, made from noised sums",
        "the final model and mask, made from noised sums",
        "the server, with everything; the clients, to clip",
    ),
    "noise on examples": Protection(
        "every client's messages, noised before they left: a client's examples are hidden one by "
        "one, the client is not",
        "the global model and mask of every round, made from noised messages",
        "the final model and mask, made from noised messages",
        "each client, with its own data and to add its noise",
    ),
    "secure sums": Protection(
        "sums over a cohort and who is in it, no client's own part",
        trusted="the server, to follow the protocol; not more clients than the shares of a key "
        "need collude with it",
    ),
    "secure sums with noise": Protection(
        "noised sums over a cohort and who is in it, no client's own part",
        "the global model and mask of every round, made from noised sums",
        "the final model and mask, made from noised sums",
        "the server, to follow the protocol; as many clients as the noise is sized for, to add "
        "their part of it and not to tell it",
    ),
    "randomised response": Protection(
        "every client's vote, noised before it left, and all else as without protection",
        trusted="each client, with its own data and to draw its answers",
    ),
}
"""By the name of a protection, which a mechanism stands for (`fedprune.privacy.mechanisms`)."""
