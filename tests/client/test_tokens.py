from dataclasses import replace

import torch

from fedprune import TASKS, Shard
from fedprune.client.tokens import read_with, token_counts
from fedprune.structure.edits import Edit

TASK = replace(TASKS["language-modelling"], tokens=("inputs",))


def part(*ids: int) -> dict[str, torch.Tensor]:
    return {"inputs": torch.tensor([ids]), "labels": torch.tensor([ids])}


def test_counts_are_of_training_and_validation_and_leave_out_what_is_no_token():
    shard = Shard(part(1, 1, 4), part(4, -100, 2), part(0, 0, 0))
    assert token_counts(shard, TASK, 6).tolist() == [0, 2, 1, 0, 2, 0]


def test_every_part_is_read_in_what_is_left_and_other_tensors_stay():
    shards = {3: Shard(part(1, 2), part(2, -100), part(5, 9))}
    cut = (Edit("neuron", "x", (0,)), Edit("vocab", "table", (0, 2, 5), "0"))
    read = read_with(cut, TASK, shards)
    assert [p["inputs"].tolist() for p in (read[3].train, read[3].validation, read[3].test)] == [
        [[0, 2]],
        [[2, -100]],
        [[5, 0]],
    ]
    assert read[3].test["labels"].tolist() == [[5, 9]]
    assert read_with(cut[:1], TASK, shards) == shards
