"""How large the numbers of a secure sum may be: known to everyone before anything is asked."""

RANGES = {
    "changes": (1e6, 1e3),
    "scores": (1e6, 1e3),
    "moments": (1e9, 1e5),
    "metrics": (1e9, 1e5),
    "counts": (1e12, 1e6),
}
"""The largest magnitude of what one client adds to a sum, weighted, in 64 and in 32 bits.

With 64 bits and 100 clients a change or a score is rounded to a multiple of 1.5e-11. Votes are
whole numbers and need no range.
"""

COARSER, MOST = 2.0**10, 3
"""By how much a range of 32 bits is widened where a client's numbers do not fit, and how often."""
