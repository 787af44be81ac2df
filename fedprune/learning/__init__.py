"""How weights move: masked training and averaging."""
