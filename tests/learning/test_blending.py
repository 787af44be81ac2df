from fedprune.learning.blending import (
    best_of_blocks,
    block_by_block,
    blocks_of,
    kept_shares,
    lowest,
    on_grid,
)
from fedprune.learning.candidates import HERE, Candidate


def test_blocks_are_numbered_parts_or_modules():
    names = [
        "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.experts.3.weight", "model.layers.10.norm.weight",
        "features.1.running_mean", "features.1.running_var", "bn1.weight", "bn1.running_var",
        "0.weight", "bare",
    ]  # fmt: skip
    blocks = blocks_of(names)
    assert {b: len(n) for b, n in blocks.items()} == {
        "model.embed_tokens": 1, "model.layers.0": 2, "model.layers.10": 1, "features.1": 2,
        "bn1": 2, "0": 1, "": 1,
    }  # fmt: skip
    assert [n for group in blocks.values() for n in group] == names


def test_the_whole_change_comes_first_and_then_what_is_near_it():
    shares = [1.0 - c.far for c in on_grid((0.0, 0.5, 1.25, 1.0))]
    assert shares == [1.0, 1.25, 0.5, 0.0]
    assert on_grid((0.5, 1.0))[0] is HERE


def test_of_equal_losses_the_first_counts():
    cases = [([3, 2, 1], 2), ([1, 1, 1], 0), ([2, 1, 1], 1), ([1, 2, 3], 0)]
    assert all(lowest(losses) == place for losses, place in cases)


BLOCKS = {"a": ("a.w", "a.b"), "b": ("b.w",), "c": ("c.w",)}


def test_every_block_takes_what_is_best_for_it_alone():
    singles = block_by_block((0.0, 0.5, 1.0), BLOCKS)
    assert len(singles) == 6
    assert singles[0] == Candidate(apart={"a.w": 0.5, "a.b": 0.5})
    both = best_of_blocks(singles, [0.9, 0.8, 1.1, 1.0, 0.99, 0.99], here=1.0)
    assert both == Candidate(apart={"a.w": 1.0, "a.b": 1.0, "c.w": 0.5})
    assert kept_shares(both, BLOCKS) == {"a": 0.0, "b": 1.0, "c": 0.5}
    assert best_of_blocks(singles, [1.0] * 6, here=1.0) is HERE
