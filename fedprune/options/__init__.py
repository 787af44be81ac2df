"""How a value is read, how one is refused, and how a user's own file adds to a table."""
