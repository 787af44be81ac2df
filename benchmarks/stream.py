"""Peak memory and seconds of pruning a language model that is not in memory, and of one that is.

    python benchmarks/stream.py [--size 60m] [--scores wanda votes sparsegpt ...] [--clients 2]
    python benchmarks/stream.py --size 8b --scores wanda --clients 1 --length 16 --texts 12 --most 5

A LLaMA of the shape is made with random bf16 weights, a file for every block, under ``--folder``
(8b: 16 GB), where it stays for the next time. Every row is a whole run in a fresh process:
one-shot at 50 %, nobody trains, all clients in this process, nothing is written. `GB` is the most
that the process had resident, pages of files included; `bytes a parameter` is how far that lies
above what is resident once the imports are done and a run of a tiny model is over. It fails where
a streamed run takes more than ``--most`` GB, or one in memory more than 6 bytes a parameter, 8 with
gradients. ``taylor-cut`` and what ends in ``global`` are not to be streamed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from at_start import apart, forget_peak, parser_of
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from fedprune import federate
from fedprune.config import configure
from fedprune.runtime.process import resident
from fedprune.streaming.blocks import without_weights
from fedprune.streaming.files import INDEX, index_of
from fedprune.tasks.tokenization import characters

SHAPES = {
    "tiny": (2, 64, 128, 4, 2, 128),
    "60m": (12, 640, 1728, 10, 5, 4096),
    "1.1b": (22, 2048, 5632, 32, 4, 32_000),
    "8b": (32, 4096, 14_336, 32, 8, 128_256),
}
"""Blocks, width, neurons, heads, heads of keys and values, tokens."""

DRAWN = 2**24 + 1
"""Numbers that are drawn; longer tensors repeat them: to draw 16 GB takes longer than to prune."""

CHOICES: dict[str, dict[str, Any]] = {
    "wanda": {"score": "wanda", "scope": "row"},
    "ria": {"score": "ria", "scope": "row"},
    "votes": {"score": "wanda", "scope": "row", "combine": "votes"},
    "wanda-global": {"score": "wanda", "scope": "global"},
    "flap": {"score": "flap", "unit": "head-neuron", "scope": "global", "shrink": "never"},
    "sparsegpt": {"score": "sparsegpt", "scope": "layer"},
    "taylor": {"score": "taylor", "scope": "row", "gradient_blocks": True},
    "fisher": {"score": "fisher", "scope": "layer", "gradient_blocks": True},
    "taylor-global": {"score": "taylor", "scope": "global", "gradient_blocks": True},
    "taylor-cut": {"score": "taylor", "unit": "head-neuron", "scope": "global",
                   "gradient_blocks": True, "shrink": "end"},
}  # fmt: skip

BYTES = dict.fromkeys(("taylor", "fisher", "taylor-global", "taylor-cut"), 8.0)
"""Bytes a parameter that a run in memory may take, where these are not 6."""


def written(folder: Path, size: str) -> int:
    """Write a model of the shape with random weights; the bytes that they take."""
    blocks, width, neurons, heads, shared, tokens = SHAPES[size]
    sizes = {"num_hidden_layers": blocks, "hidden_size": width, "intermediate_size": neurons}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": shared, "vocab_size": tokens}
    config = LlamaConfig(**sizes, dtype="bfloat16")
    model = without_weights(lambda: LlamaForCausalLM(config).to(torch.bfloat16))
    parts: dict[str, dict[str, torch.Size]] = {}
    for name, p in model.named_parameters():
        words = name.split(".")
        part = f"model-{words[2]}.safetensors" if words[1] == "layers" else f"model-{name}"
        parts.setdefault(part.removesuffix(".weight").removesuffix(".safetensors"), {})[name] = (
            p.shape
        )
    folder.mkdir(parents=True, exist_ok=True)
    files, gen = dict[str, str](), torch.Generator().manual_seed(0)
    pool = torch.randn(DRAWN, generator=gen).mul_(0.02).to(torch.bfloat16)
    for part, shapes in parts.items():
        own = {n: _random(shape, pool) for n, shape in shapes.items()}
        save_file(own, folder / f"{part}.safetensors", {"format": "pt"})
        files |= dict.fromkeys(own, f"{part}.safetensors")
    count = 2 * sum(p.numel() for p in model.parameters())
    (folder / INDEX).write_bytes(index_of(files, count))
    config.save_pretrained(folder)
    characters("causal").tokenizer.save_pretrained(folder)
    return count


def _random(shape: torch.Size, pool: torch.Tensor) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    times = -(-shape.numel() // len(pool))
    return pool.repeat(times)[: shape.numel()].view(shape).clone()


def options(folder: Path, texts: int, clients: int, length: int) -> dict[str, Any]:
    """What every run of a model in this folder is given; its texts are written there."""
    lines = (f"Line {i} says {i * i} and so on, to number {7 * i}.\n" for i in range(texts))
    (folder / "texts.txt").write_text("".join(lines))
    given = {"task": "language-modelling", "model": str(folder), "data": str(folder / "texts.txt")}
    given |= {"clients": clients, "hosts": 1, "length": length, "score_batch": 1}
    given |= {"rounds": 1, "warmup": 0, "schedule": "one-shot", "sparsity": 0.5}
    return given | {"engine": "inline"}


def run(folder: Path, told: argparse.Namespace) -> None:
    """Prune the model once."""
    given = options(folder, told.texts, told.clients, told.length)
    given |= {"local_steps": 0, "stream": told.stream, **CHOICES[told.score]}
    federate(configure(given))


def measured(told: argparse.Namespace, folder: Path, score: str, stream: str) -> tuple[int, ...]:
    """Seconds, the peak and what was resident before, of a run in a fresh process."""
    words = ("--one", folder, "--score", score, "--stream", stream, "--clients", told.clients)
    words += ("--length", told.length, "--texts", told.texts)
    return tuple(map(int, apart(__file__, *words, OMP_NUM_THREADS="1").split()))


def one(told: argparse.Namespace) -> None:
    """The run of a fresh process, after one of a tiny model."""
    with tempfile.TemporaryDirectory() as tiny:
        written(Path(tiny), "tiny")
        run(Path(tiny), argparse.Namespace(**{**vars(told), "texts": 60, "length": 8}))
    before, began = resident("VmRSS"), time.perf_counter()
    forget_peak()
    run(Path(told.one), told)
    print(round(time.perf_counter() - began), resident("VmHWM"), before)


def main() -> None:
    """Print a row for every score, streamed and not; fail where one is above its budget."""
    told = _told()
    if told.one:
        one(told)
        return
    folder = Path(told.folder or tempfile.mkdtemp()) / told.size
    size = (
        written(folder, told.size)
        if not (folder / INDEX).is_file()
        else sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    )
    failed = []
    print("| shape | score | in memory | seconds | GB | bytes a parameter | budget |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for score in told.scores:
        for stream in told.streams:
            seconds, peak, before = measured(told, folder, score, stream)
            each = (peak - before) / (size / 2)
            most = BYTES.get(score, 6.0)
            within = f"{told.most:g} GB" if stream == "on" else f"{most:g} bytes"
            over = peak / 1e9 > told.most if stream == "on" else each > most
            failed += [f"{score}, {stream}"] * over
            how = {"on": "a block", "off": "all of it"}[stream]
            row = f"{seconds} | {peak / 1e9:.2f} | {each:.1f} | {within}"
            print(f"| {told.size} | {score} | {how} | {row} |", flush=True)
    raise SystemExit(f"above the budget: {'; '.join(failed)}" if failed else 0)


def _told() -> argparse.Namespace:
    parser = parser_of(__doc__, whole=True)
    parser.add_argument("--size", choices=SHAPES, default="60m")
    parser.add_argument("--scores", nargs="*", choices=CHOICES, default=["wanda", "votes"])
    parser.add_argument("--streams", nargs="*", choices=["on", "off"], default=["on", "off"])
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--texts", type=int, default=24, help="lines of some 40 characters")
    parser.add_argument("--most", type=float, default=1.5, help="GB of a streamed run")
    parser.add_argument("--folder", default="", help="where models are kept (default: nowhere)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--score", help=argparse.SUPPRESS)
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
