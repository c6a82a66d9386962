"""The command as its users have it: a process of its own, on real files."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.stores import SQLSessionStore

COMMAND = (sys.executable, "-m", "asm_runtime")


class CommandLine:
    """Runs `asm-runtime` in a folder of the test's own, with no store of the user's in reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = "sqlite:///test.db"
        self.environment = {name: value for name, value in os.environ.items() if name != "ASM_STORE"}
        self.environment |= {"XDG_STATE_HOME": str(folder / "state"), "PYTHONWARNINGS": "error"}

    def __call__(self, *arguments: str, stdin: str | None = None, **environment: str) -> CompletedText:
        """Run it to its end."""
        return subprocess.run(
            (*COMMAND, *arguments),
            cwd=self.folder,
            env=self.environment | environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def shell(self, line: str) -> CompletedText:
        """Run a line of `sh`, in which `$ASM` is the command."""
        return subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment | {"ASM": " ".join(COMMAND)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start it, with pipes, for a test without a loop."""
        return subprocess.Popen(
            (*COMMAND, *arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def begin(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start it, with pipes."""
        return await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            cwd=self.folder,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    def in_store(self, work: Callable[[SQLSessionStore], Awaitable[Any]]) -> Any:
        """What a coroutine function does in the store of these tests."""

        async def opened() -> Any:
            async with SQLSessionStore(f"sqlite:///{self.folder / 'test.db'}") as store:
                return await work(store)

        return asyncio.run(opened())


CompletedText = subprocess.CompletedProcess[str]


@pytest.fixture
def asm(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


def json_lines(text: str) -> list[dict[str, Any]]:
    """Every line as the JSON object that it is."""
    return [json.loads(line) for line in text.splitlines()]
