"""One run from the shell: make or take a session, execute, show what happens as it happens."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import msgspec

from asm_runtime.adapters import ScriptedAdapter, ShellAdapter
from asm_runtime.cli.exits import ExitCode, complain, stop_signals
from asm_runtime.cli.log import following
from asm_runtime.cli.lookup import find_session
from asm_runtime.cli.output import Output
from asm_runtime.cli.store_option import opened
from asm_runtime.errors import AsmError, Conflict, InvalidTransition, ValidationError
from asm_runtime.manager import SessionManager
from asm_runtime.payload import JsonObject, decode
from asm_runtime.ports import ProviderAdapter
from asm_runtime.records import Event, EventType, Run, RunStatus, Session, SessionStatus

__all__ = ["ADAPTERS", "OneShot", "run_input"]

ADAPTERS: dict[str, Callable[[], ProviderAdapter]] = {
    # The command is the user's own, typed in a shell: it sees what it would see there.
    "shell": lambda: ShellAdapter(inherit_env=["*"]),
    "scripted": ScriptedAdapter,
}

MAX_STDIN_BYTES = 1_048_576
"""How much of standard input a run may have: it is kept in the store."""

_EXIT_CODES = {
    RunStatus.COMPLETED: ExitCode.DONE,
    RunStatus.FAILED: ExitCode.FAILED,
    RunStatus.TIMEOUT: ExitCode.TIMEOUT,
    RunStatus.CANCELLED: ExitCode.CANCELLED,
}


def run_input(adapter: str, words: tuple[str, ...], *, file: str | None, is_json: bool) -> Any:
    """What the run is given.

    Args:
        adapter: For a shell several words are a command and its arguments, one is a shell's line.
            For the others they are the prompt.
        words: From the command line; none: read standard input. With a command, what is piped goes to it.
        file: Read this file instead; `-` is standard input.
        is_json: The text is the input itself, as JSON.

    Raises:
        ValidationError: There is no input, or two; or it cannot be read.
    """
    if words and file is not None:
        raise ValidationError("give the input as arguments or as a file, not both")
    if words and adapter == "shell" and not is_json:
        command: JsonObject = {"command": words[0] if len(words) == 1 else list(words)}
        return command | _piped()
    text = " ".join(words) if words else _read(file)
    if is_json:
        try:
            return decode(text)
        except msgspec.DecodeError as error:
            raise ValidationError(f"the input is not JSON: {error}") from None
    return {"command": text} if adapter == "shell" else {"prompt": text}


def _piped() -> JsonObject:
    """What is piped or redirected to this process, for the command to read; it is stored with the run."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return {}
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)):
        return {}  # a terminal, a socket, /dev/null
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise ValidationError(f"standard input is longer than {MAX_STDIN_BYTES} bytes: name a file instead")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ValidationError(f"standard input is not UTF-8: {error}") from None
    return {"stdin": text} if text else {}


def _read(file: str | None) -> str:
    if file is None and sys.stdin.isatty():
        raise ValidationError("give the input as arguments, with --file, or on standard input")
    try:
        text = sys.stdin.read() if file in (None, "-") else Path(str(file)).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError(f"cannot read {file or 'standard input'}: {error}") from None
    if not text.strip():
        raise ValidationError("the input is empty")
    return text


class OneShot(msgspec.Struct, frozen=True, kw_only=True):
    """What the `run` command was told."""

    store: str | None
    adapter: str
    input: Any
    session_id: str | None
    timeout_ms: int | None
    json: bool
    quiet: bool

    async def execute(self) -> int:
        """Execute the run; the exit code is the command's own, or says how the run ended."""
        async with opened(self.store, create=True) as store:
            interrupted = _first_interrupt()
            manager = SessionManager(store, ADAPTERS[self.adapter]())
            session = await self._session(manager)
            after = await store.get_latest_sequence(session.id)
            run = await manager.start_run(session.id, self.input)
            self._say(f"{run.id} in {session.id}")
            await self._watch(manager, run, after, interrupted)
            run = await store.get_run(run.id, session_id=session.id)
        self._say_end(run)
        return _exit_code(run)

    async def _session(self, manager: SessionManager) -> Session:
        if self.session_id is None:
            session = await manager.start_session(agent_id=self.adapter)
        else:
            session = await manager.get_session(await find_session(manager.store, self.session_id))
        if session.status is SessionStatus.PENDING:
            return await manager.activate_session(session.id)
        if session.status is SessionStatus.PAUSED:  # the run would wait in the queue
            raise InvalidTransition(f"session {session.id} is paused", from_status=session.status)
        return session

    async def _watch(self, manager: SessionManager, run: Run, after: int, interrupted: asyncio.Event) -> None:
        """Execute the run and print its events up to the last. The first interrupt cancels the run."""
        async with asyncio.TaskGroup() as group:
            execution = group.create_task(self._execute(manager, run))
            canceller = group.create_task(self._cancel(manager, run, execution, interrupted))
            printing = group.create_task(self._print(manager, run, after))
            printing.add_done_callback(lambda _: canceller.cancel())

    async def _execute(self, manager: SessionManager, run: Run) -> None:
        try:
            await manager.execute_run(run.id, session_id=run.session_id, run_timeout_ms=self.timeout_ms)
        except Conflict:
            self._say("a server of this session executes it")
        except AsmError:
            stored = await manager.store.get_run(run.id, session_id=run.session_id)
            if not stored.status.is_terminal:
                raise

    async def _cancel(
        self, manager: SessionManager, run: Run, execution: asyncio.Task[None], interrupted: asyncio.Event
    ) -> None:
        await interrupted.wait()
        self._say("cancelling the run")
        execution.cancel()
        await asyncio.wait([execution])
        # For a task cancelled before its first step, and for a run that is executed elsewhere.
        await manager.cancel_run(run.id, session_id=run.session_id)

    async def _print(self, manager: SessionManager, run: Run, after: int) -> None:
        transcript = _Transcript()
        output = Output(sys.stdout)
        async for events in following(manager.store, run.session_id, after=after, run_id=run.id):
            if self.json:
                await output.json(events)
            else:
                await transcript.show(events)
            if events[-1].is_terminal:
                break
        await transcript.end()

    def _say_end(self, run: Run) -> None:
        seconds = (run.ended_at - run.started_at).total_seconds() if run.ended_at and run.started_at else 0
        why = f": {run.error['message']}" if run.error else ""
        self._say(f"{run.status} in {seconds:.2f} s{why}; go on with --session {run.session_id}")
        output: Any = run.output
        if isinstance(output, dict) and "truncated" in output and output["truncated"]:
            self._say("the output was longer than what is kept of it")

    def _say(self, what: str) -> None:
        if not self.quiet:
            complain(what)


def _exit_code(run: Run) -> int:
    """That of the command, as its shell would have it; else what became of the run."""
    if run.status is RunStatus.FAILED and run.error:
        details: Any = run.error.get("details")
        facts = cast(JsonObject, details) if isinstance(details, dict) else {}
        code, name = facts.get("exit_code"), facts.get("signal")
        if type(code) is int and 0 < code < 256:
            return code
        if isinstance(name, str) and name in signal.Signals.__members__:
            return 128 + signal.Signals[name]
    return _EXIT_CODES[run.status]


def _first_interrupt() -> asyncio.Event:
    """Set by the first signal that asks this process to end; the second one does what it always does."""
    loop, interrupted = asyncio.get_running_loop(), asyncio.Event()
    numbers = stop_signals()

    def interrupt() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
        interrupted.set()

    for number in numbers:
        with suppress(NotImplementedError):  # Windows: there it ends the process
            loop.add_signal_handler(number, interrupt)
    return interrupted


class _Transcript:
    """What a run says: a command's lines where the command wrote them, a model's text as it streams."""

    def __init__(self) -> None:
        self._output, self._errors = Output(sys.stdout), Output(sys.stderr)
        self._in_line: Output | None = None

    async def show(self, events: list[Event]) -> None:
        streamed = (event.data for event in events if event.type is EventType.MESSAGE_STREAMED)
        for stream, pieces in groupby(streamed, key=lambda data: data.get("stream")):
            output = self._errors if stream == "stderr" else self._output
            if self._in_line not in (None, output):
                await self.end()
            text = "".join(str(piece.get("delta", piece.get("content", ""))) for piece in pieces)
            await output.text(text)
            self._in_line = None if text.endswith("\n") else output

    async def end(self) -> None:
        """End the line that a streamed text left open; what a program reads stays as it was said."""
        if self._in_line is not None and self._in_line.is_terminal:
            await self._in_line.text("\n")
        self._in_line = None
