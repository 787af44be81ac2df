"""What server and clients say to each other, and what is done to it for privacy."""
