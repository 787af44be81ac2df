"""What each protection hides, and from whom."""

from __future__ import annotations

from dataclasses import dataclass

PARTIES = (
    "the server",
    "other clients",
    "who holds the final model",
    "the network",
)


@dataclass(frozen=True)
class Protection:
    """What an honest but curious party sees, of what a guarantee is meant to cover.

    Attributes:
        server: what the server sees.
        others: what other clients see.
        holder: what somebody sees who holds the final model.
        trusted: who has to be honest for all that.
    """

    server: str
    others: str = "the global model and mask of every round"
    holder: str = "the final model and mask"
    trusted: str = ""

    @property
    def seen(self) -> tuple[str, ...]:
        """What each of `PARTIES` sees."""
        return self.server, self.others, self.holder, NETWORK


NETWORK = "all that is sent, unless the connections are encrypted (TLS)"


PROTECTIONS = {
    "no protection": Protection(
        "every client's scores, votes, changes, counts and metrics, and when they came",
        trusted="everybody",
    ),
    "central noise": Protection(
        "every client's bounded messages: it adds the noise itself and is trusted",
        "the global model and mask of every round, made from noised sums",
        "the final model and mask, made from noised sums",
        "the server, with everything; the clients, to clip",
    ),
    "noise on examples": Protection(
        "every client's messages, noised before they left: a client's examples are hidden one by "
        "one, the client is not",
        "the global model and mask of every round, made from noised messages",
        "the final model and mask, made from noised messages",
        "each client, with its own data and to add its noise",
    ),
    "secure sums": Protection(
        "sums over a cohort and who is in it, no client's own part",
        trusted="the server, to follow the protocol; not more clients than the shares of a key "
        "need collude with it",
    ),
    "secure sums with noise": Protection(
        "noised sums over a cohort and who is in it, no client's own part",
        "the global model and mask of every round, made from noised sums",
        "the final model and mask, made from noised sums",
        "the server, to follow the protocol; as many clients as the noise is sized for, to add "
        "their part of it and not to tell it",
    ),
    "randomised response": Protection(
        "every client's vote, noised before it left, and all else as without protection",
        trusted="each client, with its own data and to draw its answers",
    ),
}
"""By the name of a protection, which a mechanism stands for (`fedprune.privacy.mechanisms`)."""
