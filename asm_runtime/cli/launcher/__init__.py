"""What the script `asm-runtime` calls, installed a second time as `asm_runtime_command` for it.

To import any module of `asm_runtime` takes a tenth of a second or more. An interrupt that came meanwhile
would end in a traceback. So the script's module lies outside the package, and imports it only when an
interrupt just ends the process.
"""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["interrupts_raise", "leave_on_interrupt", "main"]


def main() -> None:
    """Run the command and exit."""
    leave_on_interrupt()
    from asm_runtime.cli import main as command

    command()


def leave_on_interrupt() -> None:
    """Have an interrupt end this process at once, unless its starter has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


@contextmanager
def interrupts_raise() -> Generator[None]:
    """Inside, an interrupt is a `KeyboardInterrupt` again."""
    leaves = signal.getsignal(signal.SIGINT) is _leave
    if leaves:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if leaves:
            signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(130)
