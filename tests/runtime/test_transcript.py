"""The messages of a session, rebuilt from its log, and what that costs."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from asm_runtime import Event, SessionManager
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, say, tokens
from asm_runtime.payload import JsonObject
from asm_runtime.ports import SessionStore
from asm_runtime.records import TERMINAL_EVENT_TYPES
from asm_runtime.runtime.transcript import replay
from asm_runtime.stores import InMemorySessionStore

KINDS = ["message_sent", "message_streamed", "message_received"]
TOOLS = ["tool_call_started", "tool_call_completed", "tool_call_failed"]


class Counting:
    """A store that counts the events it was asked for."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get_events(self, *arguments: Any, **options: Any) -> list[Event]:
        events = await self._store.get_events(*arguments, **options)
        self.read += len(events)
        return events


def event(type: str, run_id: str | None = None, **data: Any) -> Event:
    return Event.new(type=type, session_id="s", run_id=run_id, data=data)


def said(messages: list[JsonObject]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def forwards(log: list[Event]) -> list[tuple[str | None, bool, JsonObject]]:
    """The whole transcript as one reads a log: whose, whether a tool's, and the message."""
    found: list[tuple[str | None, bool, JsonObject]] = []
    streams: dict[str | None, list[str]] = {}
    places: dict[str | None, tuple[int, int]] = {}  # of what is streamed by runs that have not ended

    def end(run_id: str | None, place: int | None = None) -> None:
        if chunks := streams.pop(run_id, None):
            message = {"role": "assistant", "content": "".join(chunks)}
            found.insert(len(found) if place is None else place, (run_id, False, message))

    for number, one in enumerate(log):
        run_id, data = one.run_id, one.data
        match str(one.type):
            case "message_streamed":
                streams.setdefault(run_id, []).append(data["delta"])
                places[run_id] = len(found), number
            case "run_started":
                streams.pop(run_id, None)
            case "message_received":
                streams.pop(run_id, None)
                found.append((run_id, False, {"role": "assistant", **data}))
            case "message_sent":
                end(run_id)
                found.append((run_id, False, {"role": "user", **data}))
            case "tool_call_started":
                end(run_id)
                found.append((run_id, True, {"role": "assistant", "content": "", **data}))
            case "tool_call_completed":
                found.append((run_id, True, {"role": "tool", "content": "", **data}))
            case "tool_call_failed":
                found.append((run_id, True, {"role": "tool", "content": "", **data, "is_error": True}))
            case _ if one.type in TERMINAL_EVENT_TYPES:
                end(run_id)
            case _:
                pass
    for run_id in sorted(streams, key=places.__getitem__, reverse=True):
        end(run_id, places[run_id][0])
    return found


def cut(found: list[tuple[str | None, bool, JsonObject]], limit: int) -> list[JsonObject]:
    newest = found[-limit:]
    if len(newest) < len(found):
        begun: set[str | None] = set()
        whole: list[tuple[str | None, bool, JsonObject]] = []
        for run_id, is_tool, message in newest:
            if not is_tool:
                begun.add(run_id)
            if run_id in begun:
                whole.append((run_id, is_tool, message))
        newest = whole
    return [message for _, _, message in newest]


def life(random: Random) -> list[Event]:
    """Two slots' worth of runs, lost attempts among them, and messages of nobody."""
    log: list[Event] = []
    slots: list[list[Event]] = [[], []]
    for number in range(random.randrange(1, 8)):
        run_id = f"r{number}"
        run = [event("message_sent", run_id, content=f"ask {number}")] * random.randrange(2)
        for attempt in range(1, random.choice((2, 2, 2, 3, 4))):
            run.append(event("run_started", run_id, attempt=attempt))
            for step in range(random.randrange(12)):
                kind = random.choice([*KINDS, "message_streamed", "message_streamed", *TOOLS, "custom"])
                content = f"{number}.{attempt}.{step} "
                run.append(event(kind, run_id, content=content, delta=content, tool_call_id=content))
        if random.random() < 0.9:
            run.append(event(random.choice(["run_completed", "run_failed", "run_cancelled"]), run_id))
        slots[random.randrange(2)] += run
    while any(slots):
        if random.random() < 0.05:
            log.append(event(random.choice(["message_sent", "message_received"]), content="nobody"))
        log.append(random.choice([slot for slot in slots if slot]).pop(0))
    return log


@pytest.mark.parametrize("seed", range(60))
async def test_read_backwards_it_is_what_it_is_read_forwards(seed: int) -> None:
    random = Random(seed)
    log = life(random)
    found = forwards(log)
    async with InMemorySessionStore() as store:
        for one in log:
            await store.append_event(one.replace(id=Event.new(type="custom", session_id="s").id))
        assert await replay(store, "s") == [message for _, _, message in found]
        for limit in range(1, len(found) + 2):
            assert await replay(store, "s", max_messages=limit) == cut(found, limit)


async def test_it_is_read_in_any_number_of_pages(store: SessionStore) -> None:
    log = [event("message_sent" if n % 2 else "message_received", content=f"{n}") for n in range(2_000)]
    await store.append_events(log)
    assert [message["content"] for message in await replay(store, "s")] == [str(n) for n in range(2_000)]
    kept = await replay(store, "s", max_messages=700)
    assert (len(kept), kept[0]["content"]) == (700, "1300")


@pytest.mark.parametrize("limits", [{"max_messages": 10}, {"max_chars": 100}])
@pytest.mark.parametrize("kind", ["messages", "runs", "tools"])
async def test_it_costs_what_is_kept_not_what_is_stored(store: SessionStore, limits: Any, kind: str) -> None:
    counting: Any = Counting(store)
    costs: list[int] = []
    written = 0
    for target in (20, 100, 400):
        while written < target:
            run_id = f"r{written}"
            prompt = event("message_sent", run_id, content="0123456789")
            answer = event("message_received", run_id, content="0123456789")
            batch = {
                "messages": [answer.replace(run_id=None)] * 4,
                "runs": [
                    prompt,
                    event("run_started", run_id, attempt=1),
                    answer,
                    event("run_completed", run_id),
                ],
                "tools": [
                    prompt,
                    event("run_started", run_id, attempt=1),
                    *(event("message_streamed", run_id, delta=str(digit)) for digit in range(10)),
                    answer,
                    event("tool_call_started", run_id, tool_call_id="a"),
                    event("tool_call_completed", run_id, tool_call_id="a"),
                    *(event("message_streamed", run_id, delta=str(digit)) for digit in range(10)),
                    event("run_cancelled", run_id),
                ],
            }[kind]
            fresh = [one.replace(id=Event.new(type="custom", session_id="s").id) for one in batch]
            await store.append_events(fresh)
            written += 1
        counting.read = 0
        kept = await replay(counting, "s", **limits)
        assert 5 <= len(kept) <= 20
        costs.append(counting.read)
    assert costs[0] <= 20 * 25
    assert costs[1] == costs[2] <= 64 + 128


async def test_a_stream_that_a_run_left_behind_stands_where_that_run_ended(store: SessionStore) -> None:
    gate = Gate()
    scripts: list[Any] = [[tokens(["one ", "two"]), gate], [say("three")], []]
    manager = SessionManager(store, adapter := ScriptedAdapter(scripts=scripts))
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    first = await manager.start_run(session.id, {"prompt": "first"})
    executing = asyncio.create_task(manager.execute_run(first.id))
    await gate.reached()
    executing.cancel()
    await asyncio.wait([executing])
    for prompt in ("second", "third"):
        run = await manager.start_run(session.id, {"prompt": prompt})
        await manager.execute_run(run.id, continuation=True)
    assert said(adapter.contexts[-1].history) == [
        ("user", "first"),
        ("assistant", "one two"),
        ("user", "second"),
        ("assistant", "three"),
    ]


async def test_what_a_lost_attempt_had_half_streamed_is_in_no_message(store: SessionStore) -> None:
    await store.append_events(
        [
            event("message_sent", "r", content="ask"),
            event("run_started", "r", attempt=1),
            event("message_streamed", "r", delta="hal"),
            event("run_started", "r", attempt=2),
            event("message_streamed", "r", delta="whole"),
            event("run_failed", "r"),
        ]
    )
    assert said(await replay(store, "s")) == [("user", "ask"), ("assistant", "whole")]


@pytest.mark.parametrize("limit", range(1, 8))
async def test_no_call_is_left_without_its_answer_and_no_result_without_its_call(
    store: SessionStore, limit: int
) -> None:
    log = [event("message_sent", "r", content="ask"), event("run_started", "r", attempt=1)]
    for turn in range(2):
        log.append(event("message_received", "r", content=f"answer {turn}"))
        log += [event("tool_call_started", "r", tool_call_id=f"{turn}{call}") for call in "ab"]
        log += [event("tool_call_completed", "r", tool_call_id=f"{turn}{call}") for call in "ab"]
    await store.append_events([*log, event("message_received", "r", content="last")])
    kept = await replay(store, "s", max_messages=limit)
    assert len(kept) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 6, 7: 6}[limit]
    assert kept[0]["content"] != ""
    assert kept[-1]["content"] == "last"


@pytest.mark.parametrize(("limit", "kept"), [(1, 0), (4, 0), (5, 1), (9, 1), (10, 2), (15, 3), (99, 3)])
async def test_the_newest_are_kept_that_fit_into_the_characters(
    store: SessionStore, limit: int, kept: int
) -> None:
    await store.append_events(
        [event("message_received", content=text) for text in ("aaaaa", "bbbbb", "ccccc")]
    )
    found = await replay(store, "s", max_chars=limit)
    assert [message["content"] for message in found] == ["aaaaa", "bbbbb", "ccccc"][3 - kept :]
