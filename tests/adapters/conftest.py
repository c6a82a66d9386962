"""Adapters run on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Footprint:
    """What the processes of one test leave behind; they are known by a variable in their environment."""

    def __init__(self, mark: str) -> None:
        self.env = {"ASM_TEST_MARK": mark, "PATH": os.environ["PATH"]}
        self._files = self.open_files()

    def processes(self) -> list[str]:
        """The command lines of those that are alive."""
        return [
            _command_line(pid) for pid in Path("/proc").iterdir() if pid.name.isdigit() and self._owns(pid)
        ]

    def zombies(self) -> list[str]:
        """The children of this process that wait to be reaped."""
        children = Path("/proc/self/task").glob("*/children")
        pids = [pid for listed in children for pid in listed.read_text().split()]
        return [pid for pid in pids if ") Z " in _read(Path(f"/proc/{pid}/stat"))]

    @staticmethod
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    def assert_nothing_is_left(self) -> None:
        assert self.processes() == []
        assert self.zombies() == []
        assert self.open_files() == self._files

    def _owns(self, pid: Path) -> bool:
        return f"ASM_TEST_MARK={self.env['ASM_TEST_MARK']}" in _read(pid / "environ").split("\0")


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
