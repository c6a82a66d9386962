"""How long is it to the first event?

Milliseconds in a fresh interpreter: of `import asm_runtime`, and of a whole first program, from the
start of its process to the first event of a durable session on a new SQLite file.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial

from benchmarks.harness import Harness
from benchmarks.stores import folder

IMPORT = "import time; t = time.perf_counter(); import asm_runtime; print((time.perf_counter() - t) * 1000)"

FIRST_EVENT = """
import asyncio, sys, time
from asm_runtime import SessionServer
from asm_runtime.adapters import ShellAdapter
from asm_runtime.stores import SQLSessionStore

async def main():
    async with SQLSessionStore(f"sqlite:///{sys.argv[1]}/first-{time.time_ns()}.db") as store:
        session = {"agent_id": "me"}
        async with SessionServer(store=store, adapter=ShellAdapter(), session_opts=session) as server:
            await server.submit_run({"command": "echo hello"})
            async with server.subscribe(type="message_streamed") as events:
                await anext(events)
                print(time.time() * 1000)

asyncio.run(main())
"""


async def measure(harness: Harness) -> None:
    """Answer the question."""
    with folder() as place:
        await harness.compare("import asm_runtime", {"import": imported}, unit="ms")
        harness.bound("import asm_runtime", "import", at_most=150)
        await harness.compare("a first program", {"first event": partial(first_event, str(place))}, unit="ms")
        harness.bound("a first program", "first event", at_most=1_000)


async def imported() -> float:
    """The import alone."""
    return float(await printed(IMPORT))


async def first_event(place: str) -> float:
    """From before the process starts."""
    began = time.time() * 1000
    return float(await printed(FIRST_EVENT, place)) - began


async def printed(program: str, *arguments: str) -> str:
    """What a program prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()
