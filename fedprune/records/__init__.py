"""What is kept of a run: rows, summary, folder, checkpoints."""
