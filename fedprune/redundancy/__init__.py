"""What a model has twice or not at all: dead units, duplicates, low rank; least squares."""
