"""Files, stores on them, and other processes with stores on them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from asm_runtime.stores import SQLSessionStore

ROOT = Path(__file__).parents[3]


class Node:
    """Another process with a store on the file; see `tests.stores.sql.node`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def heard(self) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        assert line, "it ended"
        return line.decode().strip()

    async def tell(self, command: str) -> None:
        """Have it do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        await self.process.stdin.drain()

    async def ask(self, command: str) -> str:
        """Have it do something; what it says then."""
        await self.tell(command)
        return await self.heard()

    async def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        await self.process.wait()


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Where a database may be."""
    return f"{tmp_path}/asm.db"


@pytest.fixture
async def store(file: str) -> AsyncIterator[SQLSessionStore]:
    """A store on the file, started."""
    async with SQLSessionStore(f"sqlite:///{file}") as store:
        yield store


@pytest.fixture
async def node(file: str) -> AsyncIterator[Callable[..., Awaitable[Node]]]:
    """Starts other processes on the file; with a command they do it and end, without they are ready."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(*command: str) -> Node:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.stores.sql.node", file, *command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        processes.append(process)
        made = Node(process)
        if not command:
            assert await made.heard() == "ready"
        return made

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()
