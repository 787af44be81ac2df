"""Which weights go: units, scopes, schedules, exact ranking, budgets, regrowth."""
