"""How the command ends: exit codes, and one line on stderr for what is expected to go wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import traceback
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Any

from asm_runtime.cli.escapes import as_lines, as_one_line
from asm_runtime.errors import AsmError, DependencyMissing, NotFound, StoreError, ValidationError

__all__ = ["ExitCode", "complain", "run_to_exit", "warn_on_stderr"]


class ExitCode(IntEnum):
    """What the command's exit code says."""

    DONE = 0
    FAILED = 1
    """The run failed, or the store refused the operation."""
    USAGE = 2
    """The call cannot mean anything, or an optional package is missing."""
    STORE = 3
    """The store cannot be used: not there, out of reach, or of another schema."""
    NOT_FOUND = 4
    """No such session or run."""
    TIMEOUT = 124
    CANCELLED = 130
    OUTPUT_CLOSED = 141
    """Whoever read the output has gone."""


def run_to_exit(command: Callable[[], Coroutine[Any, Any, ExitCode]]) -> ExitCode:
    """Run a command's coroutine on a loop of its own; what it raises becomes an exit code."""
    try:
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            return runner.run(_without_group(command()))
    except AsmError as error:
        complain(error.message)
        return _code_of(error)
    except KeyboardInterrupt:
        return ExitCode.CANCELLED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits; there is nobody to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OUTPUT_CLOSED
    except Exception:
        print(as_lines(traceback.format_exc()), file=sys.stderr, end="", flush=True)
        return ExitCode.FAILED


def warn_on_stderr() -> None:
    """Have what the library logs as a warning or worse told to the user, in this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Escaped("asm-runtime: %(message)s"))
    logging.getLogger().addHandler(handler)


class _Escaped(logging.Formatter):
    """Messages name what others wrote: ids, errors, commands."""

    def format(self, record: logging.LogRecord) -> str:
        return as_lines(super().format(record))


def complain(what: str) -> None:
    """Tell the user, in one line on stderr."""
    print(f"asm-runtime: {as_one_line(what)}", file=sys.stderr, flush=True)


async def _without_group(command: Coroutine[Any, Any, ExitCode]) -> ExitCode:
    """The command's own exception, not the group that a task group makes of it."""
    try:
        return await command
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _code_of(error: AsmError) -> ExitCode:
    match error:
        case ValidationError() | DependencyMissing():
            return ExitCode.USAGE
        case NotFound():
            return ExitCode.NOT_FOUND
        case StoreError():
            return ExitCode.STORE
        case _:
            return ExitCode.FAILED


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed (extra `fast`); None: asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
