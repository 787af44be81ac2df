"""Seconds that a device's client app takes for each part of an answer, into a file of its own.

Python imports a module of this name by itself where its folder is on PYTHONPATH. In a program that
is Flower's client app it times Flower's functions that receive, load and send, and what of the
answer is building the model and reading the data. `devices.py` puts it there and reads the files.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_BEGAN = time.monotonic()


def _watched(folder: Path) -> None:
    import flwr.supernode.runtime.run_clientapp as program

    found: dict[str, Any] = {"start": time.monotonic() - _BEGAN}

    def timed(name: str, call: Callable[..., Any], then: Callable[[], None] | None = None) -> Any:
        def whole(*given: Any, **more: Any) -> Any:
            began = time.monotonic()
            try:
                return call(*given, **more)
            finally:
                found[name] = found.get(name, 0.0) + time.monotonic() - began
                if then is not None:
                    then()

        return whole

    def loaded() -> None:
        from fedprune.engines.flower import client_hosts as hosts

        hosts._device_host = timed("build", hosts._device_host)  # type: ignore[assignment]

    def written() -> None:
        (folder / f"{os.getpid()}.json").write_text(json.dumps(found))

    def loader(*given: Any, **more: Any) -> Any:
        load = timed("import", make(*given, **more), loaded)

        def app_of(*which: Any) -> Any:
            app = load(*which)

            def answer(*, message: Any, context: Any) -> Any:
                found["kind"] = message.metadata.message_type
                return timed("answer", app)(message=message, context=context)

            return answer

        return app_of

    make = program.get_load_client_app_fn
    program.get_load_client_app_fn = loader
    program.pull_task_input = timed("receive", program.pull_task_input)
    program.push_message = timed("send", program.push_message, written)


_FOLDER = os.environ.get("FEDPRUNE_DEVICE_PHASES")
if _FOLDER and b"flwr-clientapp" in Path("/proc/self/cmdline").read_bytes():
    try:
        _watched(Path(_FOLDER))
    except Exception as error:  # a program that is watched runs all the same
        sys.stderr.write(f"not timed: {error!r}\n")
