"""What a model says twice: spectra, duplicates, dead units, paths that merge; and taking it out."""
