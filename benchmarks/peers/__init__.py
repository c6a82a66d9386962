"""Other libraries that keep a log of events in SQLite, measured in an environment of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Peers", "peers"]

_ROOT = Path(__file__).parents[2]
_PYTHON = _ROOT / ".venv-peers" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
_WORKER = Path(__file__).parent / "worker.py"


class Peers:
    """A process that measures them, one request at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, request: str, **arguments: Any) -> Any:
        """Have it do something; what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode({"request": request, **arguments}) + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peers' process ended at {request} {arguments}")
        return msgspec.json.decode(line)


@asynccontextmanager
async def peers() -> AsyncGenerator[Peers | None]:
    """The peers' process; None where they are not installed."""
    if not await asyncio.to_thread(_PYTHON.exists):
        yield None
        return
    process = await asyncio.create_subprocess_exec(
        _PYTHON, _WORKER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Peers(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
