"""What one secure sum is agreed on: who, how many neighbours, how many shares restore a secret.

Bonawitz et al. 2017, "Practical Secure Aggregation" (eprint 2017/281), with the sparse graph of
Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", SecAgg+
(eprint 2020/704).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

from fedprune.config.terms import shape_of
from fedprune.options.refusal import ConfigError, counted
from fedprune.privacy.options import Privacy


@dataclass(frozen=True)
class Terms:
    """The public terms of one sum; every party has the same.

    Attributes:
        session: names this sum and no other.
        members: the clients asked, ascending.
        neighbours: k, the clients that each shares a mask with.
        threshold: t, how many of its neighbours can restore a client's secret together; more than
            half of k, so that no two groups of neighbours can be told different stories.
        bits: width of the integers that are added, 32 or 64.
        minimum: fewest clients in a sum that a client helps to open.

    Raises:
        ValueError: if they do not fit together. A device checks its server's terms with this.
    """

    session: bytes
    members: tuple[int, ...]
    neighbours: int
    threshold: int
    bits: int
    minimum: int = 3

    def __post_init__(self) -> None:
        n, k = len(self.members), self.neighbours
        if tuple(sorted(set(self.members))) != self.members:
            raise ValueError("the members of a secure sum are named once each, ascending")
        if self.bits not in (32, 64):
            raise ValueError(f"secure_bits={self.bits}: unknown; allowed: 32, 64")
        if self.minimum < 2 or n < self.minimum:
            raise ValueError(
                f"secure_minimum={self.minimum}: {counted(n, 'client is', 'clients are')} too "
                "few for a secure sum; allowed: 2 to the cohort"
            )
        if not 1 <= k < n or n * k % 2:
            raise ValueError(
                f"secure_neighbours={k}: {counted(n, 'client has', 'clients have')} no such graph"
            )
        if not k < 2 * self.threshold <= 2 * k:
            raise ValueError(
                f"a threshold of {self.threshold}: not above half of {k} neighbours and up to all"
            )

    @cached_property
    def binding(self) -> bytes:
        """A digest of all of it: whoever was told other terms can decrypt nothing."""
        numbers = (self.neighbours, self.threshold, self.bits, self.minimum, *self.members)
        text = f"fedprune secagg+ 1|{self.session.hex()}|{'|'.join(map(str, numbers))}"
        return hashlib.sha256(text.encode()).digest()

    @property
    def colluders(self) -> int:
        """With fewer clients than this colluding, a server that lies opens no client's vector.

        It asks some of the honest neighbours for shares of the own mask and the others for shares
        of the masking key, of which each gives one; who colludes gives both. With c of them it has
        k + c shares for two secrets that take t each: c = 2t - k. (Bonawitz et al., eprint
        2017/281, section 6.2, for the complete graph, whose threshold of more than two thirds
        leaves a third.)

        That is what shares alone ask for, and a lower bound: as honest clients want `confirmations`
        signatures, two stories need 2 * confirmations - n colluding members, more than this, and t
        colluding neighbours need no story.
        """
        return 2 * self.threshold - self.neighbours

    @property
    def confirmations(self) -> int:
        """How many members must sign the same set of clients before shares are given.

        The part of the members that the threshold is of the neighbours: above half, so that no two
        sets find as many unless so many members collude that 2 * this exceeds all and them.
        """
        return -(-len(self.members) * self.threshold // self.neighbours)

    @cached_property
    def points(self) -> dict[int, int]:
        """Where each member's shares are evaluated: its place among the members, from 1."""
        return {member: place for place, member in enumerate(self.members, 1)}


def terms_of(config: Privacy, session: bytes, members: Iterable[int]) -> Terms:
    """The terms for these members, from the keys `secure_*`.

    With n members, g = floor(secure_dropout * n) of whom may go: k is the smallest multiple of 6,
    36 or more, for which two thirds of the neighbours are left to everyone with probability
    1 - 10^-4 (the number left is hypergeometric, as the graph is random; all n members are
    counted, by the union bound); n - 1, the complete graph, where there is none. The threshold is
    the largest for which this still holds, and at least a majority, floor(k / 2) + 1. In a complete
    graph that is n - 1 - g and nothing is left to chance. So `Terms.colluders` is at least a third
    of k, unless `secure_dropout` is above 0.3 or `secure_neighbours` sets k (one more if n and k
    are odd, at most n - 1).

    Raises:
        ConfigError: the extra `privacy` is not installed.
        ValueError: fewer members than `secure_minimum`.
    """
    for package in ("cryptography", "Crypto"):
        if find_spec(package) is None:
            raise ConfigError(
                f"secure={config.secure!r}: {package} is not installed; "
                "allowed: pip install 'fedprune[privacy]', or --secure none"
            )
    asked = tuple(sorted(members))
    minimum = config.secure_minimum or 3
    if len(asked) < minimum:
        raise ValueError(
            f"secure_minimum={minimum}: {counted(len(asked), 'client is', 'clients are')} too "
            f"few for a secure sum; allowed: a cohort of {minimum} and more"
        )
    k, threshold = shape_of(config, len(asked))
    return Terms(session, asked, k, threshold, config.secure_bits or 64, minimum)
