"""Privacy: what leaves a party, how noise hides it, and what that amounts to."""
