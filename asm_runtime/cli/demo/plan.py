"""What the demo's sessions do: real commands on real files, those of Python's standard library."""

from __future__ import annotations

import shlex
import sysconfig
from pathlib import Path

import msgspec

__all__ = ["LIBRARY", "SLOTS", "SUBSCRIBED", "PlannedRun", "plan"]

LIBRARY = Path(sysconfig.get_path("stdlib"))
"""Where the commands work."""

SLOTS = 2
"""How many runs of a session may run at once."""

SUBSCRIBED = "counter"
"""The session whose subscriber leaves and comes back."""

_COMMANDS = {
    "counter": "wc -l $file",
    "hasher": "cksum $file",
    "searcher": "echo $file has $(grep -c 'def ' $file) functions",
}
_FOLDERS = ("json", "email", "logging", "asyncio", "http")

_FILES_PER_RUN = 6

_PAUSE_S = 0.25
"""What a command pauses after each file, so that somebody can watch."""


class PlannedRun(msgspec.Struct, frozen=True):
    """A command that prints one line for each of its files."""

    run_id: str
    command: str
    files: list[str]


def plan() -> dict[str, list[PlannedRun]]:
    """The runs of each session."""
    return {
        session_id: [_planned(folder, command) for folder in _FOLDERS]
        for session_id, command in _COMMANDS.items()
    }


def _planned(folder: str, command: str) -> PlannedRun:
    files = sorted(str(file.relative_to(LIBRARY)) for file in (LIBRARY / folder).glob("*.py"))
    files = files[:_FILES_PER_RUN]
    loop = f"for file in {shlex.join(files)}; do {command}; sleep {_PAUSE_S}; done"
    return PlannedRun(run_id=folder, command=loop, files=files)
