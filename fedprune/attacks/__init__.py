"""What the releases of a run give away, measured by attacks."""
