"""Flower's apps: the grid, the fleet of devices, their messages."""
