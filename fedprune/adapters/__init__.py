"""Adapters: low-rank changes of frozen, pruned weights, which alone are trained and sent."""
