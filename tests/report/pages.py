"""The page of a run's folder, without its plots and its board."""

from pathlib import Path

from fedprune.report.page import write_html
from fedprune.report.pictures import pictures
from fedprune.report.reading import read_run


def write_page(folder: Path) -> Path:
    run = read_run(folder)
    return write_html(folder, run, pictures(run))
