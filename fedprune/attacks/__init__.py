"""What a release gives away: attacks on what an observer of a run really sees."""
