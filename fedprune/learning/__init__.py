"""How weights move: local training, distillation, averaging."""
