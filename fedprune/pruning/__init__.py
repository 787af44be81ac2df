"""Which weights go: scores, selection, schedules, what is prunable."""
