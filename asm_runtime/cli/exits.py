"""How the command ends: exit codes, and one line on stderr for what is expected to go wrong."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import IntEnum
from typing import Any, TextIO

from asm_runtime.cli.escapes import as_lines, as_one_line
from asm_runtime.cli.launcher import interrupts_raise
from asm_runtime.errors import AsmError, DependencyMissing, StoreError, ValidationError

__all__ = [
    "ExitCode",
    "complain",
    "exit_code_of",
    "output_failed",
    "run_to_exit",
    "stop_signals",
    "warn_on_stderr",
]


class ExitCode(IntEnum):
    """What the command's exit code says."""

    DONE = 0
    FAILED = 1
    """The run failed, there is no such session or run, or the store refused the operation."""
    USAGE = 2
    """The call is wrong, or an optional package is missing."""
    STORE = 3
    """The store cannot be used: not there, out of reach, or of another schema."""
    TIMEOUT = 124
    CANCELLED = 130
    OUTPUT_CLOSED = 141
    """The reader of the output has gone."""


def run_to_exit(command: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a command's coroutine on a loop of its own; what it raises becomes an exit code."""

    def run() -> int:
        fast_loop, work = _fast_loop(), command()  # they import, and an interrupt just ends that
        with interrupts_raise(), asyncio.Runner(loop_factory=fast_loop) as runner:
            return runner.run(_stoppable(work))

    return exit_code_of(run)


def exit_code_of(work: Callable[[], int]) -> int:
    """What a piece of the command returns; what it raises is told, and becomes an exit code."""
    try:
        return work()
    except AsmError as error:
        complain(error.message)
        return _code_of(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return ExitCode.CANCELLED
    except BrokenPipeError:
        return ExitCode.OUTPUT_CLOSED
    except Exception:
        _print_error(as_lines(traceback.format_exc()))
        return ExitCode.FAILED


def output_failed(stream: TextIO, error: OSError) -> Exception:
    """What to raise when a stream cannot be written to; what is left in its buffer is dropped."""
    # The interpreter flushes once more when it exits; there is nobody to flush to.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if error.errno in (errno.EPIPE, errno.EIO):  # a pipe, a terminal that has gone
        return BrokenPipeError(error.errno, error.strerror)
    return AsmError(f"cannot write the output: {error.strerror}")


def stop_signals() -> list[signal.Signals]:
    """The signals that ask this process to end.

    Without those that its starter has it ignore: `nohup` SIGHUP, a shell without job control SIGINT
    for what it runs in the background.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [signal.Signals[name] for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


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
    _print_error(f"asm-runtime: {as_one_line(what)}\n")


def _print_error(text: str) -> None:
    with suppress(OSError):  # nobody is left to read it: a terminal that was closed, for instance
        sys.stderr.write(text)
        sys.stderr.flush()


async def _stoppable(command: Coroutine[Any, Any, int]) -> int:
    """Run a command; it is cancelled by a signal, and raises what it raises, not the group around it."""
    task = asyncio.current_task()
    assert task is not None
    for number in stop_signals():
        if number is not signal.SIGINT:  # that one is the runner's
            with suppress(NotImplementedError):  # Windows: there it ends the process
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await command
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _code_of(error: AsmError) -> ExitCode:
    match error:
        case ValidationError() | DependencyMissing():
            return ExitCode.USAGE
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
