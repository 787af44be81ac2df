"""The sub-commands of the `fedprune` command, one module each."""
