"""What a network is made of, and how a part of it is taken out."""
