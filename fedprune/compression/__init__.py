"""Fewer bytes for what stays: mask codec, wire, coded file."""
