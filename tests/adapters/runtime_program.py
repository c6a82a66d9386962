"""A program that runs a command, to be started, killed and forked by tests.

Its arguments: how it begins (`setup`, Python), and the command. It says `up` when the command has said
something, then what the command says, and ends with it.
"""

from __future__ import annotations

import asyncio
import os
import sys

from asm_runtime.adapters.process import ProcessGroup


async def main(command: str) -> None:
    async with ProcessGroup(["/bin/sh", "-c", command], cwd="/", env=dict(os.environ)) as process:
        while (piece := await process.read()) is not None:
            print(piece[1].decode(), end="", flush=True)


if __name__ == "__main__":
    exec(sys.argv[1])
    asyncio.run(main(sys.argv[2]))
