"""docs/notebooks, executed as they lie there but for the number of rounds."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
ENDS = {"first_run": "4", "own_model": "accuracy", "privacy": "Axes"}
"""What is in the last output of each."""


@pytest.mark.slow
def test_notebooks_run_and_are_kept_without_outputs(tmp_path):
    """One after the other in one process, each without the names of the one before."""
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel")
    books = {p.stem: nbformat.read(p, as_version=4) for p in sorted(FOLDER.glob("*.ipynb"))}
    code = {n: [c for c in b.cells if c.cell_type == "code"] for n, b in books.items()}
    assert code.keys() == ENDS.keys()
    whole = next(iter(books.values()))
    whole.cells = []
    for cells in code.values():
        assert all(not cell.outputs and cell.execution_count is None for cell in cells)
        for cell in cells:
            cell.source = re.sub(r"(rounds\W+)8\b", r"\g<1>3", cell.source)
        whole.cells += [nbformat.v4.new_code_cell("%reset -f"), *cells]
    nbclient.NotebookClient(whole, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for name, cells in code.items():
        said = [str(dict(output)) for cell in cells for output in cell.outputs]
        assert ENDS[name] in said[-1] or ENDS[name] in said[-2], name
        if name != "privacy":
            assert any("pruned      1" in text for text in said), f"{name}: a line for each round"
