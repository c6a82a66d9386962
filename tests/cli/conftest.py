"""The command as its users have it: a process of its own, on real files."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.stores import SQLSessionStore

CompletedText = subprocess.CompletedProcess[str]

COMMAND = (sys.executable, "-m", "asm_runtime")


READY_TO_FORK = """\
import json, os, sys
from asm_runtime import cli
from asm_runtime.cli import changes, commands, details, oneshot, operations
while line := os.read(3, 1_000_000):
    order = json.loads(line)
    if not (pid := os.fork()):
        break
    os.write(4, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
else:
    sys.exit()
os.chdir(order["cwd"])
os.environ.clear()
os.environ.update(order["environment"])
for number, (path, flags) in enumerate(order["files"]):
    os.dup2(os.open(path, flags, 0o600), number)
os.close(3), os.close(4)
sys.argv = [cli.__file__.replace("cli/__init__", "__main__"), *order["arguments"]]
cli.main()
"""


class Forks:
    """Runs commands as forks of a process that has loaded them: nine tenths of a short one is loading."""

    def __init__(self) -> None:
        orders, answers = os.pipe(), os.pipe()
        move = f'exec 3<&{orders[0]} 4>&{answers[1]}; exec "$@"'
        self._process = subprocess.Popen(
            ("bash", "-c", move, "bash", sys.executable, "-W", "error", "-c", READY_TO_FORK),
            pass_fds=(orders[0], answers[1]),
        )
        os.close(orders[0])
        os.close(answers[1])
        self._orders, self._answers = orders[1], answers[0]

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: dict[str, str], stdin: str | None
    ) -> CompletedText:
        with tempfile.TemporaryDirectory() as folder:
            given, out, err = (os.path.join(folder, name) for name in ("in", "out", "err"))
            if stdin is not None:
                Path(given).write_bytes(stdin.encode())
            order = {
                "arguments": arguments,
                "cwd": str(cwd),
                "environment": environment,
                "files": [
                    (os.devnull if stdin is None else given, os.O_RDONLY),
                    (out, os.O_WRONLY | os.O_CREAT),
                    (err, os.O_WRONLY | os.O_CREAT),
                ],
            }
            os.write(self._orders, json.dumps(order).encode())
            code = os.read(self._answers, 100)
            assert code, "the process that forks has died"
            return CompletedText(list(arguments), int(code), _text(out), _text(err))

    def stop(self) -> None:
        os.close(self._orders)
        self._process.wait()
        os.close(self._answers)


def _text(file: str) -> str:
    return Path(file).read_bytes().decode()  # with the line ends that it has


class CommandLine:
    """Runs `asm-runtime` in a folder of the test's own, with no store of the user's in reach."""

    def __init__(self, folder: Path, forks: Forks) -> None:
        self.folder = folder
        self._forks = forks
        self.store = "sqlite:///test.db"
        self.environment = {name: value for name, value in os.environ.items() if name != "ASM_STORE"}
        self.environment |= {"XDG_STATE_HOME": str(folder / "state"), "PYTHONWARNINGS": "error"}

    def __call__(self, *arguments: str, stdin: str | None = None, **environment: str) -> CompletedText:
        """Run it to its end."""
        return self._forks.run(arguments, self.folder, self.environment | environment, stdin)

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


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.stop()


@pytest.fixture
def asm(tmp_path: Path, forks: Forks) -> CommandLine:
    return CommandLine(tmp_path, forks)


def json_lines(text: str) -> list[dict[str, Any]]:
    """Every line as the JSON object that it is."""
    return [json.loads(line) for line in text.splitlines()]
