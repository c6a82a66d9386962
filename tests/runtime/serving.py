"""A process that serves one session of a SQLite file, for the tests that kill it.

    python -m tests.runtime.serving FILE SESSION SLOTS [fail|requeue]

It says `ready`, then `started RUN` and `cancelled RUN` as they come. A run whose input is
`{"hold": true}` ends when the process reads `go` on its standard input; others end at once.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from asm_runtime import Run, Session, SessionServer
from asm_runtime.payload import JsonObject
from asm_runtime.ports import Capability, ProviderResult, RunContext
from asm_runtime.stores import SQLSessionStore


def say(*words: str) -> None:
    print(*words, flush=True)


class Holding:
    """A provider whose runs wait to be told."""

    name = "holding"

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def capabilities(self) -> list[Capability]:
        return []

    async def execute(self, run: Run, session: Session, context: RunContext) -> ProviderResult:
        say("started", run.id)
        try:
            if run.input.get("hold"):
                await self.go.wait()
            for number in range(run.input.get("tokens", 0)):
                await context.emit("message_streamed", {"content": str(number)})
        except asyncio.CancelledError:
            say("cancelled", run.id)
            raise
        return ProviderResult(output={"attempt": run.attempt})

    async def cancel(self, run_id: str) -> None:
        return None

    def validate_config(self, config: JsonObject) -> None:
        return None


async def serve(file: str, session_id: str, slots: str, on_orphan: Any = "fail") -> None:
    adapter = Holding()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with (
        SQLSessionStore(f"sqlite:///{file}", synchronous="NORMAL") as store,
        SessionServer(
            store=store,
            adapter=adapter,
            session_id=session_id,
            max_concurrent_runs=int(slots),
            max_queued_runs=10_000,
            on_orphan=on_orphan,
        ),
    ):
        say("ready")
        while line := await reader.readline():
            if line == b"go\n":
                adapter.go.set()
            if line == b"stop\n":
                return


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
