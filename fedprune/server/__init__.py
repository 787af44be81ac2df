"""The server's half: what a run carries, how a question is put, what is said about a round."""
