"""A Flower app with a model, data and a training of one's own."""
