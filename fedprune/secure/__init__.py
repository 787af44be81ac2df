"""Secure sums after SecAgg+: a server that learns the sum of its clients' vectors and no vector."""
