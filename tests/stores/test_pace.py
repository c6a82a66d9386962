from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from asm_runtime.payload import LARGE
from asm_runtime.records import Event, Run, Session
from asm_runtime.stores import pace
from asm_runtime.stores.pace import AT_ONCE, in_turn, in_turns

SMALL = Event.new(type="custom", session_id="s", data={"a": 1})


def where(record: Any) -> tuple[Any, str, bool]:
    return record, "small", threading.current_thread() is threading.main_thread()


def large(record: Any) -> tuple[Any, str, bool]:
    return record, "large", threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize(
    "record",
    [
        SMALL.replace(data={"a": [0] * LARGE}),
        SMALL.replace(metadata={"a": [0] * LARGE}),
        Run.new(session_id="s", input=[0] * LARGE),
        Run.new(session_id="s").replace(output={"a": [0] * LARGE}),
        Run.new(session_id="s", metadata={"a": [0] * LARGE}),
        Run.new(session_id="s").replace(provider_metadata={"a": [0] * LARGE}),
        Session.new(agent_id="a", context={"a": [0] * LARGE}),
        Session.new(agent_id="a", metadata={"a": [0] * LARGE}),
    ],
)
async def test_what_is_large_is_done_in_a_thread(record: Any) -> None:
    assert await in_turn(where, record) == (record, "small", False)
    assert await in_turn(where, record, large=large) == (record, "large", False)
    expected = [(SMALL, "small", True), (record, "large", False)]
    assert await in_turns(where, [SMALL, record], large=large) == expected


@pytest.mark.parametrize("record", [SMALL, Run.new(session_id="s"), Session.new(agent_id="a"), None, 5])
async def test_what_is_small_is_done_at_once(record: Any) -> None:
    for work in (in_turn(where, record, large=large), in_turns(where, [record], large=large)):
        with pytest.raises(StopIteration) as done:
            work.send(None)
        assert done.value.value in ((record, "small", True), [(record, "small", True)])


async def test_others_have_their_turn_while_much_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STRETCH_SECONDS", 0)

    async def turns(count: int) -> int:
        records = [SMALL] * count
        work = asyncio.ensure_future(in_turns(where, records))
        turns = 0
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
            records.clear()  # whatever becomes of the caller's list meanwhile
        assert len(work.result()) == count
        return turns

    assert await turns(AT_ONCE) <= 2
    assert await turns(9 * AT_ONCE) >= 8


async def test_several_that_are_not_large_are_done_together_and_in_their_order() -> None:
    records = [SMALL.replace(id=f"e{number}") for number in range(5 * AT_ONCE)]
    records[AT_ONCE + 3] = records[AT_ONCE + 3].replace(data={"a": [0] * LARGE})
    together: list[int] = []

    def few(some: Sequence[Any]) -> list[Any]:
        together.append(len(some))
        return [where(record) for record in some]

    done = await in_turns(where, records, large=large, few=few)
    assert [record for record, _, _ in done] == records
    assert [how for _, how, _ in done].count("large") == 1
    assert together == [AT_ONCE] * 4
