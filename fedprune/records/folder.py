"""The files of a run: what is written when, and read again to resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from fedprune.config import RunConfig, recorded, to_toml, with_values
from fedprune.options.refusal import ConfigError, refusal, refuse
from fedprune.privacy.ledger_file import LEDGER_NAME
from fedprune.records.bound import ENGINE, Began, began_with, gone_on_with, keep_began
from fedprune.records.checkpoint import check_beside, load_state, save_state
from fedprune.records.longer import lengthened, longer
from fedprune.runtime.files import write_atomically
from fedprune.server.rows import Row
from fedprune.server.state import State

CONFIG_NAME = "config.toml"
ROWS_NAME = "rounds.jsonl"
TIMINGS_NAME = "timings.jsonl"


def checkpoint_path(folder: Path, arm: str) -> Path:
    """Where an arm's newest state is."""
    return folder / "checkpoint" / f"{arm}.safetensors"


def fresh_folder(config: RunConfig) -> Path:
    """Where a new run's results go: `out`, or ``runs/<task>-<time>``.

    Raises:
        ConfigError: there is a run already, or nothing can be written there.
    """
    name = f"{config.task}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(config.out) if config.out else Path("runs") / name
    if (folder / CONFIG_NAME).exists():
        refuse("out", str(folder), "holds a run already", f"another folder, or --resume {folder}")
    home = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not home.is_dir() or not os.access(home, os.W_OK):
        refuse("out", str(folder), f"{home} is no folder that can be written to", "another folder")
    return folder


def check_resumable(folder: Path) -> dict[str, int]:
    """Refuse a folder that a run could not go on from to the same bits.

    Returns:
        How many bytes its checkpoints know of the files that only grow, by name.

    Raises:
        ConfigError: a checkpoint is damaged or gone, rows or releases from before it are not as
            they were written, or a link leads out of the folder; the file is named.
    """
    paths = sorted((folder / "checkpoint").glob("*.safetensors"))
    known: dict[str, int] = {}
    try:
        _check_links(folder)
        for path in paths:
            known |= {n: max(size, known.get(n, 0)) for n, size in check_beside(path).items()}
        _check_none_gone(folder, [path.stem for path in paths], known.get(ROWS_NAME, 0))
    except ValueError as error:
        raise refusal("resume", str(folder), f"{error}", "a run's folder as it was left") from None
    return known


def _check_links(folder: Path) -> None:
    """A run that goes on writes into its folder, and nowhere that somebody's link leads to."""
    home = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            raise ValueError(f"{path.relative_to(folder)} is a link out of the folder")


def _check_none_gone(folder: Path, arms: Sequence[str], known: int) -> None:
    """Refuse rows without the checkpoint that was written after them.

    Before a run's first checkpoint there may be a row already, which a kill left.
    """
    if not arms and len(_lines_in(folder / ROWS_NAME)) > 1:
        raise ValueError(f"{checkpoint_path(folder, 'pruned').name} is gone")
    for row in read_rows(folder / ROWS_NAME, known):
        if row["arm"] not in arms:
            raise ValueError(f"{checkpoint_path(folder, row['arm']).name} is gone")


def begin(folder: Path, config: RunConfig, data: str = "") -> None:
    """Make the folder and put the configuration in it: what was given, and what followed.

    `data`: digest of the shards, where they are known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Without its own folder, which holds this run: so the file runs again as it is.
    text = to_toml(with_values(config, {"out": ""}))
    keep_began(folder, _began(text.encode(), config, data))
    # Last: with it the folder holds a run that can be gone on with.
    write_atomically(folder / CONFIG_NAME, text.encode())


def _began(text: bytes, config: RunConfig, data: str) -> Began:
    models = {"init": config.init, "teacher": config.teacher}
    return began_with(text, config.plugin, data, models, config.profiles) | {ENGINE: config.engine}


def gone_on(folder: Path, config: RunConfig, data: str = "", *, anyway: bool = False) -> list[str]:
    """Check that a run goes on with what it began with.

    `anyway`: go on with something else, and write that down.

    Returns:
        What differs and was gone on with, a line each.
    """
    try:
        text = _with_rounds(folder, config, anyway=anyway)
        return gone_on_with(folder, _began(text, config, data), anyway=anyway)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"resume={str(folder)!r}: {error}; allowed: the same, or --resume-anyway, which the "
            "report then says"
        ) from None


def _with_rounds(folder: Path, config: RunConfig, *, anyway: bool) -> bytes:
    """The text of the folder's configuration, once it says how many rounds there are to be."""
    text = (folder / CONFIG_NAME).read_bytes()
    before = recorded(text.decode(), config.plugin, folder / CONFIG_NAME)
    if config.rounds == before.rounds:
        return text
    after = longer(before, config.rounds, anyway=anyway)
    lengthened(folder, text.decode(), before, after)
    text = to_toml(with_values(after, {"out": ""})).encode()
    write_atomically(folder / CONFIG_NAME, text)
    return text


def record(folder: Path, row: Row, seconds: float, state: State) -> None:
    """A round is over: its row, its time, then the checkpoint that makes it count.

    Of rows copied from a warm-up that arms share only the last is as far as `state`, and counts.
    """
    _append(folder / ROWS_NAME, row)
    timing = {"arm": row["arm"], "round": row["round"], "seconds": round(seconds, 3)}
    _append(folder / TIMINGS_NAME, timing)
    if row["round"] == state.round:
        save_state(state, checkpoint_path(folder, row["arm"]), growing(folder))


def growing(folder: Path) -> tuple[Path, ...]:
    """The files of a run that only grow: what a checkpoint counts on."""
    return tuple(folder / name for name in (ROWS_NAME, TIMINGS_NAME, LEDGER_NAME))


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())  # before the checkpoint that counts on it


def rewind(
    folder: Path,
    arms: Iterable[str],
    known: Mapping[str, int],
    kinds: Mapping[str, type],
    held: Mapping[str, Tensor] | None = None,
) -> tuple[list[Row], dict[str, State]]:
    """The rows so far and the states to go on from; rows past a checkpoint are cut off.

    `known`: from `check_resumable`; nothing vouches for what comes after so many bytes. `held`:
    weights that states of models which are not kept in memory are about.
    """
    paths = {a: checkpoint_path(folder, a) for a in arms}
    found = {a: load_state(p, kinds, held) for a, p in paths.items() if p.is_file()}

    def within(name: str) -> list[Row]:
        rows = read_rows(folder / name, known.get(name, 0))
        fit = [r for r in rows if r["arm"] in found and r["round"] <= found[r["arm"]].round]
        write_atomically(folder / name, "".join(json.dumps(r) + "\n" for r in fit).encode())
        return fit

    within(TIMINGS_NAME)
    return within(ROWS_NAME), found


def read_rows(path: Path, size: int | None = None) -> list[Row]:
    """The rows of a file; a last line that a crash cut short, without its end, is not one.

    `size`: how many of its bytes are read; None: all.

    Raises:
        ValueError: another line is damaged; its number is named.
    """
    rows = []
    for number, line in enumerate(_lines_in(path, size), 1):
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, RecursionError):
            raise ValueError(f"{path}: line {number} is damaged; allowed: rows of JSON") from None
    return rows


def _row(said: Any) -> Row:
    """A row of an arm and a round, whatever else it says."""
    if not isinstance(said, dict) or type(said.get("round")) is not int:
        raise ValueError("no row of a round")
    if not isinstance(said.get("arm"), str):
        raise ValueError("no row of an arm")
    return said


def _lines_in(path: Path, size: int | None = None) -> list[bytes]:
    return path.read_bytes()[:size].split(b"\n")[:-1] if path.is_file() else []
