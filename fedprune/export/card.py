"""The model card of a folder: ``README.md`` as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fedprune.config import RunConfig
from fedprune.export.manifest import CARD_NAME
from fedprune.options.refusal import counted
from fedprune.tasks.catalog import tasks_of
from fedprune.tasks.task import class_names_of

_TAGS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForConditionalGeneration": "text2text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
}
"""How the names of transformers' classes end, and what the hub calls what they do."""


def card(
    config: RunConfig, kind: str, sparsity: float, command: str = "", *, library: str = "fedprune"
) -> str:
    """The text of a model card.

    `command` has the run again ("": not known), `library` loads the folder.
    """
    task = tasks_of(config.plugin)[config.task]
    names = class_names_of(task, config)
    tag = next((tag for end, tag in _TAGS.items() if kind.endswith(end)), None)
    hub = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", config.model)) and not Path(config.model).exists()
    front: dict[str, Any] = {
        "license": "unknown",
        "library_name": library,
        **({"pipeline_tag": tag} if tag else {}),
        **({"base_model": config.model} if hub else {}),
        "tags": ["fedprune", "pruning", "federated-learning"],
    }
    facts = {
        "task": f"{config.task}: {task.summary}",
        "data": Path(config.data).name,
        "model": f"{kind}, from {Path(config.model).name or 'the task'}",
        "clients": f"{config.clients}, split {config.split}, {counted(config.rounds, 'round')}",
        "pruning": f"score {config.score}, unit {config.unit}, schedule {config.schedule}",
        "sparsity": f"{sparsity:.4f} of the prunable weights are removed (0.0)",
        "classes": ", ".join(f"{i} = {name}" for i, name in enumerate(names)),
        "command": f"`{command}`" if command else "",
    }
    lines = [f"- {name}: {' '.join(fact.split())}" for name, fact in facts.items() if fact]
    front_lines = [f"{key}: {json.dumps(value)}" for key, value in front.items()]  # YAML, too
    heading = f"# {config.task}, pruned by fedprune"
    ending = "The license is that of the data and of the base model, which fedprune does not know."
    return "\n".join(["---", *front_lines, "---", "", heading, "", *lines, "", ending, ""])


def write_card(folder: Path, text: str) -> None:
    """Put a card into a folder."""
    (folder / CARD_NAME).write_bytes(text.encode("utf-8", "replace"))
