"""The suite of every store: what it carries exactly, and what it refuses without harm."""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any, TypeAlias, cast

import pytest

from asm_runtime.errors import RunNotFound, SessionNotFound, ValidationError
from asm_runtime.payload import MAX_DEPTH
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import Fence, RunStatus
from asm_runtime.testing.store_case import (
    StoreCase,
    StoreUnderTest,
    as_json,
    events,
    ids,
    numbers,
    run,
    session,
)

__all__ = ["PayloadsCase"]

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def nested(depth: int) -> dict[str, Any]:
    """Objects and lists in turn, nested this deep."""
    value: Any = {} if depth % 2 else []
    for level in range(depth - 1, 0, -1):
        value = {"in": value} if level % 2 else [value]
    return cast(dict[str, Any], value)


CARRIED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "empty values": {"": "", "list": [], "object": {}, "null": None},
    "NUL in a value and in a key": {"a": "\0", "b\0c": ["x\0y"]},
    "all control characters": {"text": "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029"},
    "quotes and slashes": {"a\"b'c\\d/": "\"'\\/%_`$?:;--"},
    "beyond the basic plane": {"ключ": "😀 \U0010ffff \ufffe \ufeff é e\u0301"},
    "extreme integers": {"min": -(2**63), "max": 2**63 - 1, "exact": 2**53 + 1, "zero": 0},
    "floats that look like integers": {"values": [1.0, -1.0, 0.0, -0.0, 1e22, 1e15, 1e16]},
    "extreme floats": {"values": [5e-324, 1.7976931348623157e308, 0.1, 1 / 3, 2.5e-8]},
    "truth is not one": {"values": [True, 1, 1.0, False, 0, 0.0]},
    "texts that look like others": {"values": ["1", "true", "null", "NaN", "2024-01-01T00:00:00Z", "[]"]},
    "as deep as allowed": nested(MAX_DEPTH),
    "many keys": {str(number): number for number in range(1000)},
}


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


CANONICAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a tuple is a list": ({"a": (1, (2,))}, {"a": [1, [2]]}),
    "a subclass of str": ({Colour.RED: Colour.RED}, {"red": "red"}),
    "a subclass of int": ({"a": Level.HIGH}, {"a": 3}),
}

REFUSED: dict[str, Any] = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "an integer too large": 2**63,
    "an integer too small": -(2**63) - 1,
    "a huge integer": 10**5000,
    "a lone surrogate": "a\ud800b",
    "a lone surrogate in a key": {"\udfff": 1},
    "an integer key": {1: "a"},
    "a None key": {None: "a"},
    "a bool key": {True: "a"},
    "bytes": b"a",
    "a datetime": NOON,
    "a set": {1},
    "a Decimal": Decimal("1.5"),
    "a complex number": 1j,
    "an object": object(),
    "a class": int,
    "an exception": ValueError("x"),
    "nesting too deep": nested(MAX_DEPTH + 1),
}

WRONG_IDS: dict[str, Any] = {
    "empty": "",
    "with NUL": "a\0",
    "with a lone surrogate": "\ud800",
    "too long": "x" * 1025,
    "too long in UTF-8": "é" * 600,
    "bytes": b"s",
    "a number": 5,
    "a list": ["s"],
    "None": None,
}
WRONG_TIMES: dict[str, Any] = {
    "naive": datetime(2024, 1, 1),
    "a text": "2024-01-01T00:00:00Z",
    "a number": 0,
    "before time in UTC": datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
}
WRONG_EVENTS: dict[str, dict[str, Any]] = {
    **{f"id {name}": {"id": value} for name, value in WRONG_IDS.items()},
    **{f"session {name}": {"session_id": value} for name, value in WRONG_IDS.items()},
    **{f"run {name}": {"run_id": value} for name, value in WRONG_IDS.items() if value is not None},
    **{f"timestamp {name}": {"timestamp": value} for name, value in WRONG_TIMES.items()},
    "type unknown": {"type": "nope"},
    "type a number": {"type": 5},
    "type None": {"type": None},
    "type a list": {"type": []},
    "data a list": {"data": []},
    "data a text": {"data": "{}"},
    "metadata a number": {"metadata": 5},
    "provider empty": {"provider": ""},
    "correlation a number": {"correlation_id": 5},
    "schema version zero": {"schema_version": 0},
    "schema version a bool": {"schema_version": True},
    "number zero": {"sequence_number": 0},
    "number a text": {"sequence_number": "1"},
}
WRONG_RUNS: dict[str, dict[str, Any]] = {
    **{f"id {name}": {"id": value} for name, value in WRONG_IDS.items()},
    **{f"session {name}": {"session_id": value} for name, value in WRONG_IDS.items()},
    **{f"created {name}": {"created_at": value} for name, value in WRONG_TIMES.items()},
    **{f"started {name}": {"started_at": value} for name, value in WRONG_TIMES.items()},
    **{f"ended {name}": {"ended_at": value} for name, value in WRONG_TIMES.items()},
    **{f"input {name}": {"input": value} for name, value in REFUSED.items()},
    "status unknown": {"status": "nope"},
    "status a session's": {"status": "active"},
    "status None": {"status": None},
    "output NaN": {"output": float("nan")},
    "error a list": {"error": []},
    "error deep NaN": {"error": {"details": [float("nan")]}},
    "metadata a list": {"metadata": []},
    "token usage a list": {"token_usage": []},
    "provider metadata a text": {"provider_metadata": "x"},
    "turns negative": {"turn_count": -1},
    "turns a float": {"turn_count": 1.0},
    "turns huge": {"turn_count": 2**63},
    "attempt negative": {"attempt": -1},
    "attempt a bool": {"attempt": True},
    "cost NaN": {"cost_usd": float("nan")},
    "cost infinite": {"cost_usd": float("inf")},
    "cost a text": {"cost_usd": "1"},
    "owner empty": {"owner": ""},
    "owner a number": {"owner": 1},
}
WRONG_SESSIONS: dict[str, dict[str, Any]] = {
    **{f"id {name}": {"id": value} for name, value in WRONG_IDS.items()},
    **{f"agent {name}": {"agent_id": value} for name, value in WRONG_IDS.items()},
    **{
        f"parent {name}": {"parent_session_id": value}
        for name, value in WRONG_IDS.items()
        if value is not None
    },
    **{f"created {name}": {"created_at": value} for name, value in WRONG_TIMES.items()},
    **{f"updated {name}": {"updated_at": value} for name, value in WRONG_TIMES.items()},
    **{f"deleted {name}": {"deleted_at": value} for name, value in WRONG_TIMES.items()},
    **{f"metadata {name}": {"metadata": {"a": value}} for name, value in REFUSED.items()},
    "status unknown": {"status": "nope"},
    "status a run's": {"status": "running"},
    "context a list": {"context": []},
    "tags a text": {"tags": "tags"},
    "tags of numbers": {"tags": [1]},
    "tags None": {"tags": None},
    "a lone surrogate in a tag": {"tags": ["\ud800"]},
}
NO_RECORDS: list[Any] = [None, {}, "x", 5, Fence("s", "r", 1), object()]

Call: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any]]


def of_each(values: Iterable[Any], method: str, **options: Any) -> list[Call]:
    """The calls of a method with each of the values as its argument."""
    return [(method, (value,), options) for value in values]


def with_each(name: str, values: Iterable[Any], method: str, *arguments: Any, **options: Any) -> list[Call]:
    """The calls of a method with each of the values as that option."""
    return [(method, arguments, options | {name: value}) for value in values]


NO_COUNTS = (-1, True, 1.0, "1", 2**63)
NO_LIMITS = (0, *NO_COUNTS)
WRONG_CURSORS = ("", 5, 0, True, "a\0", "a" * 1025, ["r"])

WRONG_CALLS: list[Call] = [
    *of_each(WRONG_IDS.values(), "get_session"),
    *of_each(WRONG_IDS.values(), "delete_session"),
    *of_each(WRONG_IDS.values(), "get_run"),
    *of_each(WRONG_IDS.values(), "list_runs"),
    *of_each(WRONG_IDS.values(), "get_active_run"),
    *of_each(WRONG_IDS.values(), "get_events"),
    *of_each(WRONG_IDS.values(), "get_latest_sequence"),
    *of_each(WRONG_IDS.values(), "claim_run"),
    *of_each(WRONG_IDS.values(), "wait_for_runs", timeout_ms=0),
    *with_each("session_id", ("", 5, "a\0"), "get_run", "r"),
    *with_each("run_id", ("", 5, "a\0"), "claim_run", "s"),
    *with_each("session_id", ("", 5, "a\0"), "list_orphaned_runs"),
    *with_each("limit", NO_LIMITS, "list_sessions"),
    *with_each("limit", NO_LIMITS, "list_runs", "s"),
    *with_each("limit", NO_LIMITS, "list_orphaned_runs"),
    *with_each("limit", NO_LIMITS, "get_events", "s"),
    *with_each("max_bytes", NO_LIMITS, "get_events", "s"),
    *with_each("offset", (None, *NO_COUNTS), "list_sessions"),
    *with_each("status", ("nope", ["active", "nope"], 5, "", "running"), "list_sessions"),
    *with_each("agent_id", ("", 5, [None]), "list_sessions"),
    *with_each("status", ("nope", ["nope"], 5, "active"), "list_runs", "s"),
    *with_each("after", WRONG_CURSORS, "list_runs", "s"),
    *with_each("after", NO_COUNTS, "get_events", "s"),
    *with_each("before", NO_COUNTS, "get_events", "s"),
    *with_each("wait_timeout_ms", (None, *NO_COUNTS), "get_events", "s"),
    *with_each("since", WRONG_TIMES.values(), "get_events", "s"),
    *with_each("type", ("nope", ["custom", "nope"], 5, "", [None]), "get_events", "s"),
    *with_each("run_id", ("", 5, [""], [None], "a\0"), "get_events", "s"),
    *with_each("order", ("up", None, "", 1), "get_events", "s"),
    *with_each("max_concurrent_runs", NO_COUNTS, "claim_run", "s"),
    *with_each("max_open_runs", NO_COUNTS, "enqueue_run", run()),
    *of_each([run(status=status) for status in RunStatus if status != "pending"], "enqueue_run"),
    *of_each([None, ("s", "r", 1), "r", Fence("", "r", 1), Fence("s", "r", -1)], "release_run"),
    *with_each("timeout_ms", NO_COUNTS, "wait_for_runs", "s"),
    *with_each("after", NO_COUNTS, "wait_for_runs", "s", timeout_ms=0),
    *of_each([None, 5, "events", [None], [{}], [run()]], "append_events"),
    *with_each("fence", [("s", "r", 1), "r", Fence("s", "", 1)], "append_events", []),
    *with_each("fence", [("s", "r", 1), "r", Fence("s", "r", cast(int, "1"))], "flush", ExecutionResult()),
    *of_each([None, {}, run(), session()], "flush"),
    *of_each([ExecutionResult(session=cast(Any, run()))], "flush"),
    *of_each([ExecutionResult(run=cast(Any, session()))], "flush"),
    *of_each([ExecutionResult(events=cast(Any, None))], "flush"),
    *with_each("expected_status", ("nope", "", 5, "running", []), "save_session", session()),
    *with_each("expected_status", ("nope", "", 5, "active", []), "save_run", run()),
    *with_each("expected_session_status", ("running",), "flush", ExecutionResult(session=session())),
    *with_each("expected_run_status", ("active",), "flush", ExecutionResult(run=run())),
]


class PayloadsCase(StoreCase):
    """The same in every store: what memory accepts, a database must be able to keep."""

    @pytest.mark.parametrize("payload", CARRIED.values(), ids=CARRIED.keys())
    async def test_json_is_carried_exactly(self, store: StoreUnderTest, payload: dict[str, Any]) -> None:
        await store.save_session(session(metadata=payload, context=payload))
        await store.save_run(
            run(input=payload, metadata=payload).replace(
                output=payload, error=payload, token_usage=payload, provider_metadata=payload
            )
        )
        await store.append_events(events(1, data=payload, metadata=payload))
        found, kept, event = (
            await store.get_session("s"),
            await store.get_run("r"),
            (await store.get_events("s"))[0],
        )
        for value in (
            found.metadata,
            found.context,
            kept.input,
            kept.output,
            kept.error,
            kept.metadata,
            kept.token_usage,
            kept.provider_metadata,
            event.data,
            event.metadata,
        ):
            assert as_json(value) == as_json(payload)

    async def test_ten_megabytes_of_text_are_carried(self, store: StoreUnderTest) -> None:
        text = "text é\0😀 " * 800_000
        await store.append_events(events(1, data={"text": text}))
        assert (await store.get_events("s"))[0].data == {"text": text}

    @pytest.mark.parametrize(("given", "kept"), CANONICAL.values(), ids=CANONICAL.keys())
    async def test_a_value_that_json_writes_otherwise_is_kept_in_its_plain_form(
        self, store: StoreUnderTest, given: dict[str, Any], kept: dict[str, Any]
    ) -> None:
        by_hand = events(1)[0].replace(data=given)
        returned = await store.append_event_with_sequence(by_hand)
        (found,) = await store.get_events("s")
        for event in (returned, found):
            assert repr(event.data) == repr(kept)

    @pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
    async def test_what_json_cannot_carry_is_refused_with_its_path(
        self, store: StoreUnderTest, value: Any
    ) -> None:
        fine, wrong = events(1)[0], events(1)[0].replace(data={"some": [{"where": value}]})
        for write in (
            store.append_event(wrong),
            store.append_event_with_sequence(wrong),
            store.append_events([fine, wrong]),
            store.flush(ExecutionResult(session(), run(), [fine, wrong])),
        ):
            with pytest.raises(ValidationError, match=r"data\.some\[0\]\.where"):
                await write
        await self.nothing_is_stored(store)

    async def test_a_value_that_holds_itself_is_refused(self, store: StoreUnderTest) -> None:
        endless: dict[str, Any] = {}
        endless["again"] = [endless]
        with pytest.raises(ValidationError):
            await store.append_event(events(1)[0].replace(data=endless))
        await self.nothing_is_stored(store)

    async def test_an_event_made_by_hand_is_checked(self, store: StoreUnderTest) -> None:
        accepted: list[str] = []
        for name, changes in WRONG_EVENTS.items():
            wrong = events(1)[0].replace(**changes)
            accepted += await self.accepted(
                name,
                store.append_event(wrong),
                store.append_event_with_sequence(wrong),
                store.append_events([*events(1), wrong]),
                store.flush(ExecutionResult(session(), run(), [wrong])),
            )
        assert accepted == []
        await self.nothing_is_stored(store)

    async def test_a_run_made_by_hand_is_checked(self, store: StoreUnderTest) -> None:
        accepted: list[str] = []
        for name, changes in WRONG_RUNS.items():
            wrong = run().replace(**changes)
            accepted += await self.accepted(
                name,
                store.save_run(wrong),
                store.enqueue_run(wrong),
                store.flush(ExecutionResult(session(), wrong, events(1))),
            )
        assert accepted == []
        await self.nothing_is_stored(store)

    async def test_a_session_made_by_hand_is_checked(self, store: StoreUnderTest) -> None:
        accepted: list[str] = []
        for name, changes in WRONG_SESSIONS.items():
            wrong = session().replace(**changes)
            accepted += await self.accepted(
                name, store.save_session(wrong), store.flush(ExecutionResult(wrong, run(), events(1)))
            )
        assert accepted == []
        await self.nothing_is_stored(store)

    async def test_what_is_no_record_is_refused(self, store: StoreUnderTest) -> None:
        accepted: list[str] = []
        for thing in NO_RECORDS:
            accepted += await self.accepted(
                repr(thing),
                store.save_session(thing),
                store.save_run(thing),
                store.enqueue_run(thing),
                store.append_event(thing),
                store.append_event_with_sequence(thing),
                store.append_events([thing]),
            )
        assert accepted == []
        await self.nothing_is_stored(store)

    async def test_wrong_arguments_are_refused_whatever_they_are(self, store: StoreUnderTest) -> None:
        accepted: list[str] = []
        for method, arguments, options in WRONG_CALLS:
            call = getattr(store, method)(*arguments, **options)
            accepted += await self.accepted(f"{method}{arguments} {options}", call)
        assert accepted == []
        await self.nothing_is_stored(store)

    async def test_a_refused_call_does_not_disturb_its_neighbours(self, store: StoreUnderTest) -> None:
        calls = [*events(20)]
        calls[7] = calls[7].replace(data={"a": float("nan")})
        outcomes = await asyncio.gather(
            *(store.append_event_with_sequence(event) for event in calls), return_exceptions=True
        )
        assert [index for index, outcome in enumerate(outcomes) if isinstance(outcome, ValidationError)] == [
            7
        ]
        assert numbers(await store.get_events("s")) == list(range(1, 20))

    @pytest.mark.parametrize("id", ["a", "x" * 1024, "é" * 512, "😀", " ", "a/b%_'\"\\;--", "S", "\x7f\n"])
    async def test_any_text_without_nul_up_to_1024_bytes_is_an_id(
        self, store: StoreUnderTest, id: str
    ) -> None:
        await store.save_session(session(id, agent_id=id, parent_session_id=id))
        await store.enqueue_run(run(id, id))
        appended = events(1, id, id=id, run_id=id, provider=id, correlation_id=id)
        await store.append_events(appended)
        await store.append_events(appended)
        claimed = await store.claim_run(id)
        assert claimed is not None
        assert claimed.id == id
        assert ids(await store.list_sessions(agent_id=id)) == [id]
        found = await store.get_events(id, run_id=id)
        assert found == [appended[0].replace(sequence_number=1)]
        assert (await store.get_run(id)).session_id == id

    async def test_ids_that_differ_in_case_or_form_are_different(self, store: StoreUnderTest) -> None:
        same_looking = ["a", "A", "a ", "á", "a\u0301", "\uff41"]
        for id in same_looking:
            await store.append_events(events(2, id, id="e") + events(1, id, id="E"))
            await store.save_run(run(id))
        assert [await store.get_latest_sequence(id) for id in same_looking] == [2] * len(same_looking)
        assert ids(await store.list_runs("s")) == same_looking

    async def test_times_are_kept_to_the_microsecond_in_utc(self, store: StoreUnderTest) -> None:
        east = timezone(timedelta(hours=5, minutes=30))
        moments = [
            datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=east),
            datetime(1, 1, 2, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
            datetime(9999, 12, 30, 1, 2, 3, 4, tzinfo=UTC),
        ]
        for number, moment in enumerate(moments):
            await store.append_events([events(1)[0].replace(timestamp=moment)])
            await store.save_session(session(str(number)).replace(created_at=moment, updated_at=moment))
            await store.save_run(run(str(number)).replace(created_at=moment, ended_at=moment))
        found = await store.get_events("s")
        kept = [await store.get_session(str(number)) for number in range(len(moments))]
        runs = await store.list_runs("s")
        for times in (
            [event.timestamp for event in found],
            [one.created_at for one in kept],
            [one.updated_at for one in kept],
            [one.created_at for one in runs],
            [one.ended_at for one in runs],
        ):
            assert times == moments
            assert all(time is not None and time.tzinfo is UTC for time in times)
        assert ids(await store.list_sessions()) == ["1", "2", "0", "3"]

    @staticmethod
    async def accepted(name: str, *calls: Awaitable[Any]) -> list[str]:
        """The name, once for each of the calls that did not raise `ValidationError`, and how it ended."""
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        return [f"{name}: {outcome!r}" for outcome in outcomes if not isinstance(outcome, ValidationError)]

    async def nothing_is_stored(self, store: StoreUnderTest) -> None:
        """The store is alive and empty."""
        assert await store.get_latest_sequence("s") == 0
        assert await store.list_runs("s") == []
        assert await store.list_sessions() == []
        with pytest.raises(SessionNotFound):
            await store.get_session("s")
        with pytest.raises(RunNotFound):
            await store.get_run("r")
