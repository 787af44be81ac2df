"""A run's folder -> report.html, one file that needs nothing else: no request, one script.

`write_report` makes everything a person looks at: plots/*.png and the page.
Words that clients wrote (reasons of failures) are escaped by the template and cut to a length.
"""

from pathlib import Path

from markupsafe import Markup

from fedprune.records.staying import empty_summary
from fedprune.report.closing import ALONE, gap_words
from fedprune.report.figures import figures_in
from fedprune.report.picture import Picture, svg, write_plots
from fedprune.report.pictures import pictures
from fedprune.report.privacy import (
    other_notices,
    privacy_sentences,
    release_table,
    statement_of,
    sum_notices,
)
from fedprune.report.reading import Run, arms, baselines_in, read_run, worded
from fedprune.report.round_table import round_table
from fedprune.report.sentences import (
    earlier_task,
    facts,
    result_sentence,
    tested_on,
    title,
    unreached,
    what_was_run,
)
from fedprune.report.tables import (
    config_table,
    digest_table,
    failure_table,
    failures,
    layer_table,
    provenance_table,
    quality_table,
    rank_sentence,
    spread_table,
    staying_table,
)
from fedprune.report.template import RUN_PAGE, rendered
from fedprune.report.unpruned import shown_names


def write_report(folder: Path) -> None:
    """Write plots/*.png and report.html from the files of a run's folder."""
    run = shown_names(read_run(folder))
    made = pictures(run)
    write_plots(folder, made)
    write_html(folder, run, made)


def write_html(folder: Path, run: Run, made: dict[str, Picture]) -> Path:
    """Render the page; the same folder gives the same bytes."""
    figures, notes = figures_in(run)
    text = rendered(
        RUN_PAGE,
        kicker="fedprune run",
        title=title(run),
        what=what_was_run(run),
        verdict=" ".join(filter(None, [unreached(run), result_sentence(run)])),
        facts=facts(run),
        quality=quality_table(run),
        tested_on=tested_on(run),
        spread=spread_table(run),
        spread_of=worded(str((run.summary.get("client_spread") or {}).get("of", ""))),
        rank_off=rank_sentence(run),
        gap=gap_words(run.summary.get("gap_closure")),
        alone=ALONE if {"local-only", "centralised"} & {*baselines_in(run)} else "",
        earlier=earlier_task(run),
        figures=figures,
        figure_notes=notes,
        pictures=made,
        # The one thing that is not escaped: elements that matplotlib wrote, its texts escaped.
        svg={name: Markup(svg(picture)) for name, picture in made.items()},
        layers=layer_table(run),
        not_prunable=run.summary.get("not_prunable") or [],
        stays=staying_table(run),
        warnings=[*(run.summary.get("notes") or []), empty_summary(run.summary)],
        privacy=[*privacy_sentences(run), *sum_notices(run)],
        releases=release_table(run),
        statement=statement_of(run),
        failures=failure_table(run),
        failure_count=len(failures(run)),
        noticed=other_notices(run),
        rounds={arm: round_table(run, arm) for arm in arms(run.rows)},
        config=config_table(run.config),
        commands=_commands(run),
        digests=digest_table(run),
        provenance=provenance_table(run),
        anyway=run.summary.get("resumed_anyway", ()),
    )
    path = folder / "report.html"
    path.write_bytes(text)
    return path


def _commands(run: Run) -> list[tuple[str, str]]:
    told = (("Repeat", run.summary.get("command")), ("Resume", run.summary.get("resume")))
    return [(what, str(command)) for what, command in told if command]
