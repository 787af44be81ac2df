"""Bytes: masks, values on the wire, the coded file."""
