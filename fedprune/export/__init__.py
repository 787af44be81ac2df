"""A finished model in other forms, and what it weighs."""
