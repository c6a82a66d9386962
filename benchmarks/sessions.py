"""The provider and the servers that the questions about whole runs are asked with."""

from __future__ import annotations

from asm_runtime import Run, Session, SessionServer
from asm_runtime.payload import JsonObject
from asm_runtime.ports import Capability, ProviderResult, RunContext, SessionStore
from benchmarks.stores import PAYLOAD

__all__ = ["Streamer", "server_on"]


class Streamer:
    """A provider that reports `input["tokens"]` events as fast as it may."""

    name = "streamer"

    async def capabilities(self) -> list[Capability]:
        """None."""
        return []

    async def execute(self, run: Run, session: Session, context: RunContext) -> ProviderResult:
        """Stream, and be done."""
        for _ in range(run.input["tokens"]):
            await context.emit("message_streamed", PAYLOAD)
        return ProviderResult(output={})

    async def cancel(self, run_id: str) -> None:
        """Nothing to stop."""

    def validate_config(self, config: JsonObject) -> None:
        """Anything goes."""


def server_on(store: SessionStore, *, slots: int = 1) -> SessionServer:
    """A server on a new session, not started yet."""
    return SessionServer(
        store=store,
        adapter=Streamer(),
        session_opts={"agent_id": "bench"},
        max_concurrent_runs=slots,
        max_queued_runs=100_000,
    )
