"""What a run's page says in sentences, and its headline figures."""

from typing import Any

from fedprune.options.refusal import counted
from fedprune.records.summary import OWN_DATA
from fedprune.report.intervals import interval_sentence, noise_on_measures
from fedprune.report.reading import (
    NO_VALUE,
    Run,
    baselines_in,
    clients_train,
    duration,
    metric_text,
    number,
    percent,
    ratio,
    significant,
    size,
    whole,
    worded,
)
from fedprune.report.round_table import reduced_cell
from fedprune.report.tables import measured_columns, results, shorten, test_figure
from fedprune.report.unpruned import nothing_pruned
from fedprune.tasks.coverage import reading_summary
from fedprune.tasks.measures import metric_of
from fedprune.tasks.owners import sentences

SENTENCES = (
    "{clients_told} trained {model} of {parameters} parameters on the task {task}.",
    "{clients_running} train on the task {task}. This is the state so far.",
    "{clients_calibrating} scored {model} of {parameters} parameters on the task {task}.",
    "Their data is split as {split}, {held} training {unit} each.",
    "Each is a device with data of its own, {own_held} training {unit} each.",
    "Clients are owners of rows: {owners_told}.",
    "Not all text was read: {reading_told}.",
    "The server asked {cohort} of them in each round.",
    "{panel_told} more never train; the model is measured on them.",
    "It scored weights by {score}, removed {removed} of the prunable ones on a {schedule} schedule "
    "with {scope} scope, {whose}, and {tuned}.",
    "The model's outputs stand for the classes {classes}, in this order.",
    "Redundancy taken out: {reduced}.",
    "{rounds_completed} of {rounds_told} {was} completed.",
    "It stopped early, after round {ended_early}: validation loss fell no further.",
    "The model is that of round {best_round}, with the lowest loss on validation.",
    "The run took {time} on {hosts_told} of the engine {engine}, with seed {seed}.",
    "Baselines of the same budget and seed: {baselines}.",
)

WHOSE = {
    None: "one mask for all clients",
    "masks": "each client with a mask of its own",
    "parts": "each client with a part of the model of its own",
}
"""What clients have of the model, by the summary's ``clients_have``."""


def title(run: Run) -> str:
    """The page's title: the task and how much went."""
    task = run.summary.get("task") or run.config.get("task") or "run"
    if run.rows and not run.over:
        return f"{task}, not ended"
    sparsity = number(run.summary.get("sparsity"))
    # What factors take the place of was not pruned.
    what = "fewer prunable weights" if run.summary.get("reduced") else "pruned"
    if sparsity > 0:
        return f"{task}, {percent(sparsity)} {what}"
    own = number(run.summary.get("own_sparsity"))
    return f"{task}, {percent(own)} pruned by clients" if own > 0 else f"{task}, nothing pruned"


def what_was_run(run: Run) -> str:
    """One paragraph that says what happened, from the configuration and the summary."""
    known = {k: v for k, v in {**run.config, **run.summary}.items() if v is not None}
    for noun in ("client", "round", "host"):
        if isinstance(many := known.get(f"{noun}s"), int):
            known[f"{noun}s_told"] = counted(many, noun)
    if panel := known.get("panel"):
        known["panel_told"] = str(panel)
        known["clients_told"] = counted(known["clients"] - panel, "client")
    if known.get("cohort") == len(known.get("shard_sizes") or []):
        known["cohort"] = "all"
    if not run.over and run.rows:
        known["clients_running"] = known.pop("clients_told", "")
        known["cohort"] = ""  # said with the rest of what was done
    known["tuned"] = "averaged what the clients then tuned"
    if not clients_train(run):
        known["tuned"] = "no client trained"
        known["clients_calibrating"] = known.pop("clients_told", "")
    known["was"] = "was" if known.get("rounds") == 1 else "were"
    known["baselines"] = ", ".join(baselines_in(run))
    known["held"] = " to ".join(
        dict.fromkeys(whole(choose(known.get("shard_sizes") or [None])) for choose in (min, max))
    )
    known.setdefault("unit", "examples")
    known["classes"] = listed(known.get("class_names") or [])
    known["owners_told"] = "; ".join(sentences(run.summary.get("population") or {}))
    known["reading_told"] = "; ".join(reading_summary(run.summary.get("reading") or {}))
    known["parameters"] = whole(known.get("parameters"))
    reduced = "reduced" in known  # of which the sparsity at the end says more than what was pruned
    removed = number(run.summary.get("sparsity_asked" if reduced else "sparsity"))
    known["removed"] = percent(removed) if removed > 0 else NO_VALUE
    if reduced:
        known["reduced"] = reduced_cell(known["reduced"])
    known["whose"] = WHOSE[known.get("clients_have")]
    known["time"] = duration(known.get("seconds"))
    if known.get("split") == OWN_DATA:
        del known["split"]
        known["own_held"] = known["held"]
    told = {key: value for key, value in known.items() if value not in ("", NO_VALUE)}
    return " ".join(filter(None, (filled(sentence, told) for sentence in SENTENCES)))


def listed(names: list[str], most: int = 20) -> str:
    """Names for a sentence: the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def filled(sentence: str, known: dict[str, Any]) -> str:
    """The sentence with its gaps filled; nothing where one of them is not known."""
    try:
        return sentence.format_map(known)
    except KeyError:
        return ""


def result_sentence(run: Run) -> str:
    """The result in one sentence, and what the baselines reached."""

    def read(name: str) -> str:
        return metric_text(run.metric, test_figure(run, name, run.metric))

    gain = test_figure(run, "final", run.metric) - test_figure(run, "dense_at_pruning", run.metric)
    gain = gain if metric_of(run.metric).higher else -gain
    names = results(run)
    if "final" not in names:
        return "No model was measured on the test split."
    against = f"the dense model's {read('dense_at_pruning')} when pruning began"
    relation = "better than" if gain > 0 else "worse than" if gain < 0 else "the same as"
    if noise_on_measures(run):
        relation = "beside"  # better or worse by chance
    if gain != gain:
        relation, against = "with", "no dense model measured when pruning began"
    against = "" if nothing_pruned(run) else f", {relation} {against}"
    ends = f"The {run.main} model ends at a test {worded(run.metric)} of {read('final')}"
    text = f"{ends}{against}."
    others = [f"{name} {read(name)}" for name in names if name in baselines_in(run)]
    beside = {
        "own": "Clients' own models reach",
        "newcomers": "On clients that never trained it is",
    }
    told = [f"{words} {read(name)}." for name, words in beside.items() if name in names]
    baselines = [f"Baselines of the same budget: {', '.join(others)}."] if others else []
    return " ".join([text, *told, *baselines])


def unreached(run: Run) -> str:
    """What of the run was not done that it was asked for; "" where all was."""
    if run.rows and not run.over:
        last = run.rows[-1]
        of = run.config.get("rounds") or NO_VALUE
        return f"The run has not ended: arm {last['arm']} is at round {last['round']} of {of}."
    if failed := run.summary.get("failed"):
        text = shorten(failed)
        return f"{text[:1].upper()}{text[1:]}."
    done = run.summary.get("reached", True)
    why = "too few clients answered, or the privacy budget was spent"
    return "" if done else f"The run was not finished: {why}."


def tested_on(run: Run) -> str:
    """What the test figures were measured on."""
    count = whole(test_figure(run, "final", "count"))
    unit = run.summary.get("unit") or "examples"
    whose = f"all partitions, {count} {unit}"
    if noise_on_measures(run):  # they send means
        whose = f"{count} clients, each counted once"
    return f"On the test split of {whose}.{interval_sentence(run, measured_columns(run))}"


def earlier_task(run: Run) -> str:
    """What has become of the task of the run that this one continues; "" where there is none."""
    told = run.summary.get("before")
    if not told:
        return ""
    new, old = _measured(told["now"]), _measured(told["then"])
    new = f"this model is at {new}" if new else f"this model was not measured: {told['why']}"
    old = f"that run ended at {old}" if old else "that run kept no quality"
    where = f"The earlier task, {told['task']} of {told['run']}"
    return f"{where}, on its own test split: {old}; {new}."


def _measured(quality: dict[str, Any] | None) -> str:
    """What was measured in words, its first three figures; "" without any."""
    known = {n: v for n, v in (quality or {}).items() if n != "count" and v is not None}
    told = list(known.items())[:3]
    return ", ".join(f"{worded(name)} {metric_text(name, value)}" for name, value in told)


def facts(run: Run) -> list[tuple[str, str, str]]:
    """Headline figures: what it is, the figure, and what it is measured against."""
    told = run.summary
    parameters = number(told.get("parameters"))
    left = 1 - number(told.get("sparsity_of_all"))
    disk = told.get("bytes_on_disk") or {}
    sent = number(told.get("bytes_up")) + number(told.get("bytes_down"))
    dense_sent = number(told.get("bytes_dense"))
    figures = [
        (
            "prunable weights kept",
            percent(ratio(told.get("kept_parameters"), told.get("prunable_parameters"))),
            f"{whole(told.get('kept_parameters'))} of {whole(told.get('prunable_parameters'))}",
        ),
        (
            "all parameters kept",
            percent(left),
            f"{whole(left * parameters)} of {whole(told.get('parameters'))}",
        ),
        (
            "size on disk",
            size(disk.get("pruned")),
            f"{percent(ratio(disk.get('pruned'), disk.get('dense')))} "
            f"of {size(disk.get('dense'))} dense",
        ),
        (
            "sent up and down",
            size(sent),
            f"{percent(ratio(sent, dense_sent))} of {size(dense_sent)} for dense FedAvg"
            if dense_sent > 0
            else "nobody trained",
        ),
    ]
    if devices := told.get("devices"):
        energy = f"{significant(devices['joules'] / 1e3)} kJ" if devices["joules"] else "no energy"
        took = duration(devices["seconds"])
        figures.append(("simulated devices", took, f"by their clock, {energy}"))
    return [fact for fact in figures if fact[1] != NO_VALUE]
