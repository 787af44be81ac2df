"""The hub of Hugging Face and its libraries: whether it can be reached, and that they are quiet."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR


@functools.cache
def reachable() -> bool:
    """Whether the hub answers; asked once and briefly, where the client itself would ask for 45 s.

    ``HF_HUB_OFFLINE=1`` says no, without asking.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # of whatever kind: what cannot be asked is not reachable
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Within the block the hub's client asks nobody.

    ``local_files_only`` alone does not say so: transformers looks for adapters without it, and the
    client tries that six times.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block `transformers` and the hub's client print neither bars nor warnings."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_level = hub.get_verbosity()
    logging.set_verbosity_error()
    hub.set_verbosity(ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        hub.set_verbosity(hub_level)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
