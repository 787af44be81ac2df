"""A study: one configuration for each combination of values, played, compared and shown.

What it decides: which runs a file of values stands for, which of them are there already, and what
is said of several runs beside each other. It may import everything but the commands.
"""
