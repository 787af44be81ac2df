"""The command line: simulated federations on Ray or in one process."""
