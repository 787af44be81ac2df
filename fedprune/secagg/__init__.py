"""Secure sums: the server sees the sum of a cohort's answers and nothing of one client."""
