"""The transformers that are known, one value for each architecture: `catalog.FAMILIES`."""
