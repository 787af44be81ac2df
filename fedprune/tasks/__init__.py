"""What is learned: data, split, model, loss, metric."""
