"""All families, and what is looked up over them: sub-layers by class, small models by name."""

from __future__ import annotations

from fedprune.structure.families.bert import BERT, DISTILBERT, ELECTRA, ROBERTA
from fedprune.structure.families.family import Family, SmallModel, SubLayer
from fedprune.structure.families.gemma import GEMMA2, GEMMA3
from fedprune.structure.families.gpt2 import GPT2
from fedprune.structure.families.gpt_neox import GPT_NEOX
from fedprune.structure.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from fedprune.structure.families.mixture import MIXTRAL, QWEN2_MOE, QWEN3_MOE
from fedprune.structure.families.modernbert import MODERNBERT
from fedprune.structure.families.opt import OPT
from fedprune.structure.families.phi3 import PHI3
from fedprune.structure.families.t5 import T5
from fedprune.structure.families.vit import VIT

FAMILIES: dict[str, Family] = {
    f.model_type: f
    for f in (
        *(LLAMA, MISTRAL, QWEN2, QWEN3, PHI3, GEMMA2, GEMMA3, GPT2, OPT, GPT_NEOX),
        *(MIXTRAL, QWEN2_MOE, QWEN3_MOE),
        *(BERT, ROBERTA, DISTILBERT, ELECTRA, MODERNBERT, T5, VIT),
    )
}
"""By `model_type`, the name in a config of transformers. A new family is a value and its name here.
"""

# By `family_name`: importing transformers here would cost every CNN run seconds.
SUBLAYERS: dict[str, SubLayer] = {
    name: sublayer for f in FAMILIES.values() for name, sublayer in f.sublayers.items()
}

MIXTURES: tuple[str, ...] = tuple(name for f in FAMILIES.values() for name in f.mixtures)
"""Classes of mixtures of experts."""

SMALL_MODELS: dict[str, SmallModel] = {
    name: small for f in FAMILIES.values() for name, small in f.small.items()
}
"""Two layers (T5: two and two) of width 64 with four heads, unless ``--depth`` and ``--width`` say
otherwise: 0.1 to 0.3 million parameters."""
