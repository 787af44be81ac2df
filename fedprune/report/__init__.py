"""What a person reads of a run: rows, plots, the page."""
