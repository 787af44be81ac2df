"""What a secure sum costs against adding the same vectors in the clear.

    python benchmarks/secure.py [--coordinates 1000000] [--clients 10 50 100] [--bits 64]

Every client does all its stages here, one after the other in one thread. Bytes are of the messages
of one client, in both directions, without the question: keys, roster, shares, vector, and 4 bytes
for each client that a message names. The plain client sends float32. The server is timed with
nobody gone, and with 3 in 10 gone after they had sent their shares, whose masks it must remove.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from at_start import parser_of

from fedprune.config import RunConfig
from fedprune.secagg.client import confirmed, masked_vector, revealed, shares_of
from fedprune.secagg.fixed_point import Ring, from_ring, ring_type, scale_for, to_ring
from fedprune.secagg.keys import Keys, keys_of
from fedprune.secagg.server import unmasked
from fedprune.secagg.terms import Terms, terms_of

ID, SIGNATURE = 4, 64

T = TypeVar("T")


def timed(function: Callable[[], T], times: list[float]) -> T:
    """What it returns; how long it took goes to the end of `times`."""
    start = time.perf_counter()
    result = function()
    times.append(time.perf_counter() - start)
    return result


def seed(member: int) -> bytes:
    return hashlib.sha256(b"benchmark" + str(member).encode()).digest()


def values(member: int, coordinates: int) -> np.ndarray:
    """What a client would send: made again where it is needed, so that memory stays small."""
    return np.random.default_rng(member).standard_normal(coordinates, np.float32).clip(-4, 4)


def plain(clients: int, coordinates: int) -> tuple[np.ndarray, float]:
    """The sum in float64 and how long it took to add."""
    total, times = np.zeros(coordinates), [0.0]
    for member in range(clients):
        vector = values(member, coordinates)
        timed(lambda vector=vector: np.add(total, vector, out=total), times)
    return total, sum(times)


def opening(
    total: Ring,
    roster: dict[int, Keys],
    sent: dict[int, dict[int, bytes]],
    summed: frozenset[int],
    terms: Terms,
    times: list[float],
    confirming: list[float],
) -> tuple[Ring, float, dict[int, dict[int, bytes]]]:
    """The opened sum, the server's time, and what each revealed; clients' times go to `times`."""
    shares, said = {}, {}
    told = summed, roster.keys(), terms
    for m in sorted(summed):
        said[m] = timed(lambda m=m: confirmed(seed(m), m, roster, *told), confirming)
    for m in sorted(summed):
        received = {one: mine[m] for one, mine in sent.items() if m in mine}
        shares[m] = timed(
            lambda m=m, received=received: revealed(seed(m), m, roster, received, *told, said),
            times,
        )
    server: list[float] = []
    out = timed(lambda: unmasked(total, roster, roster.keys(), summed, shares, terms), server)
    return out, server[0], shares


def compare(clients: int, coordinates: int, bits: int) -> None:
    """Print one row."""
    config = RunConfig(task="digits", secure="secagg", secure_bits=bits)
    terms, scale = terms_of(config, b"benchmark", range(clients)), scale_for(4.0, clients, bits)
    spent: dict[str, list[float]] = {"keys": [], "shares": [], "masked": []}
    spent |= {"confirm": [], "unmask": []}
    roster, sent = {}, {}
    for m in terms.members:
        roster[m] = timed(lambda m=m: keys_of(seed(m), terms), spent["keys"])
    for m in terms.members:
        sent[m] = timed(lambda m=m: shares_of(seed(m), m, roster, terms), spent["shares"])
    left = frozenset(terms.members[3 * clients // 10 :])
    totals = {s: np.zeros(coordinates + 1, ring_type(bits)) for s in (frozenset(roster), left)}
    adding: list[float] = []
    for m in terms.members:
        vector = values(m, coordinates)
        hidden = timed(
            lambda m=m, vector=vector: masked_vector(
                seed(m), m, roster, roster.keys(), to_ring(vector, scale, bits), terms
            ),
            spent["masked"],
        )
        for who, total in totals.items():
            if m in who:
                timed(lambda total=total, hidden=hidden: np.add(total, hidden, out=total), adding)
    results = {
        who: opening(total, roster, sent, who, terms, spent["unmask"], spent["confirm"])
        for who, total in totals.items()
    }
    opened, unmasking, shares = results[frozenset(roster)]
    wanted, plain_time = plain(clients, coordinates)
    assert np.abs(from_ring(opened, scale, bits) - wanted).max() <= clients * scale.step / 2 + 1e-9
    m = terms.members[0]
    ciphers = sum(ID + len(cipher) for cipher in sent[m].values())
    keys = len(roster[m].as_bytes)
    up = keys + ciphers + hidden.nbytes + sum(ID + len(one) for one in shares[m].values())
    up += SIGNATURE
    down = clients * (ID + keys) + ciphers + 2 * clients * ID + clients * (ID + SIGNATURE)
    each = {stage: statistics.median(times) for stage, times in spent.items()}
    ours = statistics.median(adding) * clients
    print(
        f"| {clients} | {bits} | {terms.neighbours} | {up:,} | {up / (4 * coordinates):.2f}"
        f" | {down:,} | {each['masked']:.2f} | {sum(each.values()) - each['masked']:.3f}"
        f" | {plain_time:.2f} | {ours + unmasking:.2f} | {ours + results[left][1]:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 32])
    given = parser.parse_args()
    print(
        "| clients | bits | neighbours | bytes up | over plain | more bytes down | mask, s"
        " | other stages, s | server, plain, s | server, s | server, 3 in 10 gone, s |"
    )
    print("|" + "---:|" * 11)
    for bits in given.bits:
        for clients in given.clients:
            compare(clients, given.coordinates, bits)


if __name__ == "__main__":
    main()
