import os
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.protocol import sum_in_file
from fedprune.protocol.aggregate import Aggregate
from fedprune.protocol.running_sum import RunningSum
from fedprune.protocol.sum_in_file import Hidden, SumInFile, outside_for

FACTORS = st.lists(st.sampled_from([1.0, 3.0, 7.5, 1e6]), min_size=1, max_size=4)


@given(factors=FACTORS, size=st.integers(1, 40), seed=st.integers(0, 99), hidden=st.booleans())
def test_it_has_the_bits_of_a_sum_in_memory(
    factors: list[float], size: int, seed: int, hidden: bool
):
    gen = torch.Generator().manual_seed(seed)
    rows = [torch.randn(size, generator=gen) * 10.0 ** (seed % 20) for _ in factors]
    rows[0][:: 1 + seed % 3] = -0.0
    found = SumInFile(hidden=Hidden() if hidden else None)
    at_once = sum_in_file._AT_ONCE
    try:
        sum_in_file._AT_ONCE = 7
        for row, factor in zip(rows, factors, strict=True):
            found.add(row, factor)
        total = found.total()
    finally:
        sum_in_file._AT_ONCE = at_once
    wanted = rows[0].numpy().astype("float64") * factors[0]
    for row, factor in zip(rows[1:], factors[1:], strict=True):
        wanted = wanted + row.numpy().astype("float64") * factor
    assert total.numpy().tobytes() == wanted.tobytes()


def test_of_nothing_there_is_no_sum_and_small_ones_have_no_file():
    assert SumInFile().total() is None
    assert RunningSum(SumInFile()).whole() == RunningSum().whole()
    few = sum_in_file.FROM // 8
    assert (outside_for(few - 1, None), outside_for(few, None)) == (None, SumInFile())


def test_sums_of_hosts_are_added_there_too(tmp_path: Path):
    def piece(*values: float) -> Aggregate:
        total = torch.tensor(values, dtype=torch.float64)
        return Aggregate(total, 2.0, {"count": 1.0}, answered=(int(values[0]),), bytes_up=9)

    ours, theirs = RunningSum(SumInFile(tmp_path)), RunningSum()
    for each in (piece(0.0, -0.0, 1e300), piece(1.0, 0.1, -3.0)):
        ours.add(each)
        theirs.add(each)
    found, wanted = ours.whole(), theirs.whole()
    assert found.total.numpy().tobytes() == wanted.total.numpy().tobytes()
    assert (found.weight, found.totals, found.answered) == (4.0, {"count": 2.0}, (0, 1))
    assert os.listdir(tmp_path) == [], "nobody finds it, and nothing is left of it"


def test_what_is_hidden_is_on_no_disk_and_no_two_writings_are_under_one_keystream():
    """Of zeros that are added three times the file would be the keystream itself."""
    found, seen = SumInFile(hidden=Hidden()), list[bytes]()
    for _ in range(3):
        found.add(torch.zeros(2**18 + 5), 1.0)
        found._file.seek(0)
        seen.append(found._file.read())
    other = SumInFile(hidden=Hidden())
    other.add(torch.zeros(2**18 + 5), 1.0)
    other._file.seek(0)
    seen.append(other._file.read())
    words = [set(np.frombuffer(each, dtype="<u8").tolist()) for each in seen]
    assert [len(each) for each in words] == [2**18 + 5] * 4, "no word twice, none is 0"
    assert not set.intersection(*words[:2]) | words[2] & words[0] | words[3] & words[0]
