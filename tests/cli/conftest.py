"""The command as its users have it: a process of its own, on real files."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
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

    async def begin(self, *arguments: str, before: str = ":") -> asyncio.subprocess.Process:
        """Start it, with pipes, in the place of a shell that has run a line `before`."""
        return await asyncio.create_subprocess_exec(
            *("sh", "-c", f'{before}; exec "$@"', "sh"),
            *COMMAND,
            *arguments,
            cwd=self.folder,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    def on_terminal(self, *arguments: str, **environment: str) -> bytes:
        """Run it to its end on a terminal, stderr too; returns what the terminal was sent."""
        return self._on_terminal(*COMMAND, *arguments, **environment)

    def each_on_terminal(self, commands: Sequence[Sequence[str]], **environment: str) -> list[bytes]:
        """Likewise for each of several commands, one after another, in one process: that is quicker."""
        program = (
            "import json, os, sys\n"
            "from asm_runtime.cli.commands import run\n"
            "for arguments in json.loads(sys.argv[1]):\n"
            "    run(arguments)\n"
            "    os.write(1, b'\\0')\n"
        )
        given = json.dumps([list(command) for command in commands])
        sent = self.python_on_terminal(program, given, **environment).split(b"\0")
        assert len(sent) == len(commands) + 1, sent
        return sent[:-1]

    def python_on_terminal(self, program: str, *arguments: str, **environment: str) -> bytes:
        """What a Python program sends to its terminal."""
        return self._on_terminal(sys.executable, "-c", program, *arguments, **environment)

    def _on_terminal(self, *argv: str, **environment: str) -> bytes:
        pid, terminal = pty.fork()
        if pid == 0:
            try:
                os.chdir(self.folder)
                size = {"COLUMNS": "2000", "LINES": "50", "TERM": "xterm-256color"}
                os.execve(argv[0], argv, self.environment | size | environment)
            finally:
                os._exit(127)
        sent = b""
        try:
            while piece := os.read(terminal, 65_536):
                sent += piece
        except OSError:
            pass  # Linux: the other side is closed
        finally:
            os.close(terminal)
            os.waitpid(pid, 0)
        return sent

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
