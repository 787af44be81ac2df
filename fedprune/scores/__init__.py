"""How important a weight is, and how the evidence of clients becomes one score."""
