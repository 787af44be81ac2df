"""The Flower ServerApp of this project: ``flwr run .`` lands here."""

from fedprune.engines.flower.server_app import app

__all__ = ["app"]
