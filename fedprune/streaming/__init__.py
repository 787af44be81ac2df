"""Models that are larger than what a process may take: read where they lie, a block at a time."""
