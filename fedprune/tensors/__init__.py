"""Named tensors, the one data type that travels through a round, and what of a model they are.

What it decides: what the state of a model is, in which order its values lie, what a digest is of.
It imports nothing else of fedprune.
"""
