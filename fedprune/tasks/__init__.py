"""What is learned: model, data, split over clients, loss, metric."""
