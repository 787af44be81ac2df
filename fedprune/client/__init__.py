"""The client's half: what it computes for a question, and the host that serves clients."""
