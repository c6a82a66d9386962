"""The `asm-runtime` command. It needs the `cli` extra."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit.

    Args:
        arguments: What follows the command's name; None: those of this process.
    """
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
