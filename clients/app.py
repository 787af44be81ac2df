"""The Flower ClientApp of this project: what a device, or a worker of a simulation, runs."""

from fedprune.engines.flower.client_app import app

__all__ = ["app"]
