"""Simulation on Ray."""
