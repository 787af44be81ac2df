"""The version of this package."""

RELEASE = "0.1.0"
