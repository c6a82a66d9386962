"""The runtime's side of an adapter, small: a run, its session, and an `emit` that keeps what it gets."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import msgspec

from asm_runtime.payload import JsonObject, canonical_object
from asm_runtime.ports import ProviderAdapter, ProviderResult, RunContext
from asm_runtime.records import EventType, Run, Session


class Recording:
    """One run of an adapter.

    Attributes:
        events: What was emitted, in order: type and data.
        metadata: Its metadata, in the same order.
        room: While it is cleared, `emit` waits, as with a full buffer.
    """

    def __init__(
        self, input: Any, *, run_id: str | None = None, adapter_opts: JsonObject | None = None
    ) -> None:
        self.session = Session.new(agent_id="tests")
        self.run = Run.new(session_id=self.session.id, input=input, id=run_id)
        self.context = RunContext(emit=self._emit, attempt=1, adapter_opts=adapter_opts or {})
        self.events: list[tuple[EventType, JsonObject]] = []
        self.metadata: list[JsonObject] = []
        self.room = asyncio.Event()
        self.room.set()
        self._emitted = asyncio.Event()

    async def of(self, adapter: ProviderAdapter) -> ProviderResult:
        return await adapter.execute(self.run, self.session, self.context)

    def next_attempt(self) -> Recording:
        """The same run, once more."""
        again = Recording(self.run.input, run_id=self.run.id)
        again.session, again.run = self.session, self.run
        again.context = msgspec.structs.replace(again.context, attempt=self.context.attempt + 1)
        return again

    def begin(self, adapter: ProviderAdapter) -> asyncio.Task[ProviderResult]:
        return asyncio.create_task(self.of(adapter))

    async def until(self, type: EventType, containing: str = "") -> JsonObject:
        """Wait for an event of this type whose content contains this; returns its data."""
        while True:
            for kind, data in self.events:
                if kind == type and containing in str(data.get("content", "")):
                    return data
            await self._emitted.wait()

    def types(self) -> list[str]:
        return [str(kind) for kind, _ in self.events]

    def data_of(self, type: EventType) -> list[JsonObject]:
        return [data for kind, data in self.events if kind == type]

    def written(self, stream: str | None = None) -> str:
        """All that was streamed."""
        streamed = self.data_of(EventType.MESSAGE_STREAMED)
        return "".join(data["delta"] for data in streamed if stream in (None, data.get("stream")))

    def lines(self, stream: str | None = None) -> list[str]:
        return self.written(stream).removesuffix("\n").split("\n")

    async def _emit(
        self,
        type: EventType | str,
        data: JsonObject | None = None,
        *,
        timestamp: datetime | None = None,
        metadata: JsonObject | None = None,
        id: str | None = None,
    ) -> None:
        kept = canonical_object(data, "data")
        await self.room.wait()
        self.events.append((EventType(type), kept))
        self.metadata.append(canonical_object(metadata, "metadata"))
        self._emitted.set()
        self._emitted = asyncio.Event()
