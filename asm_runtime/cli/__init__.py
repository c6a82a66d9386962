"""The `asm-runtime` command. It needs the `cli` extra."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, cast

from asm_runtime.cli.launcher import leave_on_interrupt

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit.

    Args:
        arguments: What follows the command's name; None: those of this process.
    """
    leave_on_interrupt()
    _fill_standard_streams()
    try:
        from asm_runtime.cli.commands import run
        from asm_runtime.cli.exits import warn_on_stderr
    except ModuleNotFoundError as missing:
        if missing.name not in ("cyclopts", "rich"):
            raise
        print(
            f"asm-runtime: the command needs {missing.name}: pip install 'asm-runtime[cli]'", file=sys.stderr
        )
        sys.exit(2)

    warn_on_stderr()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def _fill_standard_streams() -> None:
    """See that there is a standard input, output and error, and that whatever is written can be.

    One that was closed (`>&-`) would else be the number of the next file that is opened, and what is
    printed would go there: into the store, for instance.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    # A terminal that has no UTF-8 gets escapes.
    cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
