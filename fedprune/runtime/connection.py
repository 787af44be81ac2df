"""The name of the SuperLink that devices meet at."""

CONNECTION = "devices"
"""In Flower's configuration, which ``fedprune devices`` writes."""
