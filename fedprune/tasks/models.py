"""The small models that the built-in tasks train from scratch."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Two 3x3 convolutions with BatchNorm and ReLU, each halving the side, then two linear layers.

    Input (B, 1, side, side), output (B, classes).
    """

    def __init__(self, side: int, channels: tuple[int, int], hidden: int, classes: int) -> None:
        super().__init__()
        first, second = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(second * (side // 4) ** 2, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(nn.functional.relu(self.hidden(self.features(images))))
        return logits


def small_llama(vocabulary: int) -> nn.Module:
    """A LLaMA of two layers and width 64 from `transformers`, untied, for sequences up to 256."""
    # transformers takes seconds to import: only who builds a language model pays.
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model
