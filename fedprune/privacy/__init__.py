"""What noise is worth: mechanisms, accounting, the ledger."""
