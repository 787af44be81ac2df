"""What a program does to its process and its files: threads, generators, guards, how it ends."""
