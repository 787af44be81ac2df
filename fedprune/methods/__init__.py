"""How the server decides on masks and weights, one file for each way."""
