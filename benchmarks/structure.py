"""What removing structure is worth: a BERT-base-sized model, dense against smaller ones.

    python benchmarks/structure.py [--batch 4] [--length 128] [--repeats 5] [--threads 1]

The model has BERT base's shape (12 layers, 768 wide, 12 heads, 3072 neurons) and random weights:
speed depends on shapes, not on values. All variants are called in turn in one process, so a ratio
is of calls made side by side; printed are its median and quartiles. FLOPs are counted under eager
attention, times are taken under PyTorch's fused one.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from torch import nn

from fedprune.export.measure import Forward, operations, size_of, speedup, spread_of, timed
from fedprune.structure.cuts import edits_of
from fedprune.structure.edits import Edit, Edits
from fedprune.structure.layout import layout_of
from fedprune.structure.surgery import reshaped
from fedprune.tensors.models import load_into, state_of
from fedprune.tensors.named import Masks, full_masks, masked


def bert_base() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=30522), add_pooling_layer=False).eval()


def kept_share(model: nn.Module, share: float) -> Edits:
    """Edits that keep this part of the heads and of the neurons of every layer."""
    sizes = {(g.kind, g.path): len(g.parts[0].index) for g in layout_of(model).structure.groups}
    return tuple(
        Edit(kind, path, tuple(range(round(share * size)))) for (kind, path), size in sizes.items()
    )


def without_blocks(model: nn.Module, every: int) -> Edits:
    """Edits that take one block in `every` out."""
    layout = layout_of(model)
    gone = [b.path for i, b in enumerate(layout.structure.blocks) if i % every == every - 1]
    groups = layout.structure.groups
    return tuple(
        Edit(g.kind, g.path) for g in groups if any(g.path.startswith(path) for path in gone)
    )


def low_rank(model: nn.Module, rank: int) -> Edits:
    """Edits that replace every feed-forward matrix by factors of a rank."""
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layer." in n]
    return tuple(Edit("rank", n, (rank,)) for n in layers if "attention" not in n)


def zeroed(model: nn.Module) -> nn.Module:
    """The same shape with half of the prunable weights at 0.0."""
    layout = layout_of(model)
    state = state_of(model)
    masks: Masks = full_masks(state, layout.prunable)
    for name, mask in masks.items():
        mask.view(-1)[state[name].abs().view(-1).argsort()[: mask.numel() // 2]] = False
    assert edits_of(masks, layout) == (), "zeros alone are no structure"
    load_into(model, masked(state, masks))
    return model


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "50 % of single weights at 0.0": zeroed,
    "3/4 of the heads and neurons": lambda m: reshaped(m, kept_share(m, 0.75)),
    "1/2 of the heads and neurons": lambda m: reshaped(m, kept_share(m, 0.5)),
    "1/4 of the heads and neurons": lambda m: reshaped(m, kept_share(m, 0.25)),
    "3 of 4 blocks": lambda m: reshaped(m, without_blocks(m, 4)),
    "feed-forward of rank 128": lambda m: reshaped(m, low_rank(m, 128)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in {"batch": 4, "length": 128, "repeats": 5, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    dense = bert_base()
    models = {"dense": dense}
    models |= {name: make(copy.deepcopy(dense)) for name, make in VARIANTS.items()}
    ids = torch.randint(30522, (args.batch, args.length), generator=torch.Generator())
    forward = Forward((ids,), {})
    calls = {name: (lambda m=m: forward.through(m)) for name, m in models.items()}
    seconds = timed(calls, repeats=args.repeats, warmup=1, threads=args.threads)
    whole = operations(dense, forward)
    print("| kept | parameters | FLOPs | forward, ms | times as fast, median (quartiles) |")
    print("|---|---:|---:|---:|---:|")
    for name, model in models.items():
        ratio, spread = speedup(seconds["dense"], seconds[name]), spread_of(seconds[name])
        print(
            f"| {name} | {size_of(model).parameters / 1e6:.1f} M "
            f"| {operations(model, forward) / whole:.2f} | {1000 * spread.median:.0f} "
            f"| {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) |"
        )


if __name__ == "__main__":
    main()
