"""The Flower ServerApp: the loop of `fedprune.rounds` over a Flower grid."""
