"""Adapters run on asyncio's own loop and on uvloop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asm_runtime.adapters import fork_server
from tests.loops import LoopFactory, chosen_loops


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    one_will_do = item.get_closest_marker("one_loop") is not None
    return chosen_loops(config, *(["asyncio"] if one_will_do else ["asyncio", "uvloop"]))


class Footprint:
    """What the processes of one test leave behind; they are known by a variable in their environment."""

    def __init__(self, mark: str) -> None:
        self.env = {"ASM_TEST_MARK": mark, "PATH": os.environ["PATH"]}
        self._before = _open_files()

    def processes(self) -> list[str]:
        """The command lines of those that are alive."""
        return [
            _command_line(pid) for pid in Path("/proc").iterdir() if pid.name.isdigit() and self._owns(pid)
        ]

    def zombies(self) -> list[str]:
        """The children of this process that wait to be reaped, but for helpers that are done."""
        fork_server._take_statuses()
        children = Path("/proc/self/task").glob("*/children")
        pids = [pid for listed in children for pid in listed.read_text().split()]
        awaited = [pid for pid in pids if int(pid) not in fork_server._ended]
        return [pid for pid in awaited if ") Z " in _read(Path(f"/proc/{pid}/stat"))]

    def open_files(self) -> set[str]:
        """What this process has opened since, but for connections to helpers that await the next command.
        Nothing if it has closed as much: uvloop replaces files of its own.
        """
        kept = {f"socket:[{os.fstat(connection.fileno()).st_ino}]" for connection in fork_server._idle}
        if fork_server._server is not None:
            kept.add(f"socket:[{os.fstat(fork_server._server._connection.fileno()).st_ino}]")
        now = {file for file in _open_files() if file.partition(" ")[2] not in kept}
        before = {file for file in self._before if file.partition(" ")[2] not in kept}
        return now - before if len(now - before) > len(before - now) else set()

    def assert_nothing_is_left(self) -> None:
        assert self.processes() == []
        assert self.zombies() == []
        assert self.open_files() == set()

    def _owns(self, pid: Path) -> bool:
        return f"ASM_TEST_MARK={self.env['ASM_TEST_MARK']}" in _read(pid / "environ").split("\0")


def _open_files() -> set[str]:
    """Each with its number: a file that was closed and its number taken by another is a new one."""
    files: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            files.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:
            pass  # that of the listing itself
    return files


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _command_line(pid: Path) -> str:
    return _read(pid / "cmdline").replace("\0", " ")


@pytest.fixture
async def footprint(request: pytest.FixtureRequest) -> Footprint:
    """Made on the running loop, whose own files are counted already."""
    return Footprint(f"{request.node.name}-{os.urandom(8).hex()}")
