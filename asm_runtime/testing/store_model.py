"""The suite of every store: random sequences of calls, held against a model that is simple to read."""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from random import Random
from typing import Any

import pytest

from asm_runtime.errors import AsmError, Conflict, InvalidTransition, LeaseLost, QueueFull, RunNotFound
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import Event, EventType, Fence, Run, RunStatus, Session, SessionStatus
from asm_runtime.testing.store_case import StoreCase, StoreUnderTest, events, json_size, run, session

__all__ = ["ModelCase", "StoreModel", "random_event", "random_filter"]

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
SESSIONS = ["s1", "s2", "s3"]
RUNS = ["r1", "r2", "r3", "r4", "r5"]
OPEN = ("pending", "running")


class StoreModel:
    """What a store holds, and what each call must do to it. Nothing waits here, nothing is concurrent."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.runs: dict[tuple[str, str], Run] = {}
        self.events: dict[str, list[Event]] = {}

    def runs_of(self, session_id: str, *statuses: str) -> list[Run]:
        return [
            one
            for (owner, _), one in self.runs.items()
            if owner == session_id and (not statuses or one.status in statuses)
        ]

    def list_runs(
        self, session_id: str, status: str | None, *, limit: int | None, after: str | None
    ) -> list[Run]:
        runs = self.runs_of(session_id)
        if after is not None:
            places = [index for index, one in enumerate(runs) if one.id == after]
            if not places:
                raise RunNotFound("")
            runs = runs[places[0] + 1 :]
        return [one for one in runs if status in (None, one.status)][:limit]

    def get_run(self, run_id: str, session_id: str | None) -> Run:
        found = [
            one for (owner, id), one in self.runs.items() if id == run_id and session_id in (None, owner)
        ]
        if len(found) > 1:
            raise Conflict("")
        if not found:
            raise RunNotFound("")
        return found[0]

    def flush(
        self,
        result: ExecutionResult,
        *,
        fence: Fence | None = None,
        expected_session_status: str | None = None,
        expected_run_status: str | None = None,
        expected_session: Session | None = None,
        expected_run: Run | None = None,
    ) -> list[tuple[str, int | None]]:
        if fence is not None:
            fenced = self.runs.get((fence.session_id, fence.run_id))
            if fenced is None or fenced.status != "running" or fenced.attempt != fence.attempt:
                raise LeaseLost("")
        runs, saved, row = dict(self.runs), result.run, result.session
        if saved is not None:
            known = self.runs.get((saved.session_id, saved.id))
            self.check(known, saved, expected_run_status, expected_run)
            runs[saved.session_id, saved.id] = saved
        if row is not None:
            stored = self.sessions.get(row.id)
            self.check(stored, row, expected_session_status, expected_session)
            is_open = any(one.session_id == row.id and one.status in OPEN for one in runs.values())
            if row.status == "completed" and (stored is None or stored.status != "completed") and is_open:
                raise Conflict("")
            self.sessions[row.id] = row
        self.runs = runs
        return [self.append(event) for event in result.events]

    @staticmethod
    def check(
        stored: Session | Run | None, new: Session | Run, status: str | None, row: Session | Run | None
    ) -> None:
        if status is not None and status != ("absent" if stored is None else stored.status):
            raise Conflict("")
        if row is not None and row != stored:
            raise Conflict("")
        if stored is not None and stored.status != new.status and stored.status.is_terminal:
            raise InvalidTransition("")

    def append(self, event: Event) -> tuple[str, int | None]:
        log = self.events.setdefault(event.session_id, [])
        known = next((one for one in log if one.id == event.id), None)
        if known is None:
            known = event.replace(sequence_number=len(log) + 1)
            log.append(known)
        return known.id, known.sequence_number

    def enqueue(self, asked: Run, max_open_runs: int | None) -> Run:
        stored = self.runs.get((asked.session_id, asked.id))
        if stored is not None:
            if stored.input == asked.input:
                return stored
            raise Conflict("")
        row = self.sessions.get(asked.session_id)
        if row is not None and row.status.is_terminal:
            raise InvalidTransition("")
        if max_open_runs is not None and len(self.runs_of(asked.session_id, *OPEN)) >= max_open_runs:
            raise QueueFull("")
        self.runs[asked.session_id, asked.id] = asked
        return asked

    def claimable(self, session_id: str, slots: int | None, run_id: str | None) -> Run | None:
        row = self.sessions.get(session_id)
        if row is not None and row.status != "active":
            return None
        if slots is not None and len(self.runs_of(session_id, "running")) >= slots:
            return None
        pending = self.runs_of(session_id, "pending")
        return next((one for one in pending if run_id in (None, one.id)), None)

    def release(self, fence: Fence) -> None:
        stored = self.runs.get((fence.session_id, fence.run_id))
        if stored is not None and stored.status == "running" and stored.attempt == fence.attempt:
            self.runs[fence.session_id, fence.run_id] = stored.replace(owner=None)

    def delete(self, session_id: str) -> None:
        self.sessions.pop(session_id, None)
        self.events.pop(session_id, None)
        self.runs = {key: one for key, one in self.runs.items() if key[0] != session_id}

    def read(self, session_id: str, **filter: Any) -> list[Event]:
        found = [
            event
            for event in self.events.get(session_id, [])
            if event.sequence_number is not None
            and event.sequence_number > (filter["after"] or 0)
            and (filter["before"] is None or event.sequence_number < filter["before"])
            and (filter["run_id"] is None or event.run_id in filter["run_id"])
            and (filter["type"] is None or event.type in filter["type"])
            and (filter["since"] is None or event.timestamp > filter["since"])
        ]
        found = (found[::-1] if filter["order"] == "desc" else found)[: filter["limit"]]
        sizes = accumulate(map(json_size, found))
        return [
            event
            for index, (event, size) in enumerate(zip(found, sizes, strict=True))
            if index == 0 or filter["max_bytes"] is None or size <= filter["max_bytes"]
        ]


class ModelCase(StoreCase):
    """Random calls."""

    @pytest.mark.parametrize("seed", range(6))
    async def test_any_sequence_of_calls_does_what_the_model_does(
        self, store: StoreUnderTest, seed: int
    ) -> None:
        random, model = Random(seed), StoreModel()
        for _ in range(150):
            await _step(random, store, model)
        assert {one.id: one for one in await store.list_sessions()} == model.sessions
        for session_id in SESSIONS:
            assert await store.get_events(session_id) == model.events.get(session_id, [])
            assert await store.list_runs(session_id) == model.runs_of(session_id)
            active = await store.get_active_run(session_id)
            assert (active is None) == (not model.runs_of(session_id, "running"))

    @pytest.mark.parametrize("seed", range(4))
    async def test_an_answer_is_the_log_of_one_moment(self, store: StoreUnderTest, seed: int) -> None:
        """Whatever is appended, deleted and made again while it is read."""
        random = Random(seed)
        moments: list[StoreModel] = [StoreModel()]

        async def write() -> None:
            for _ in range(60):
                model = StoreModel()
                model.events = {id: list(log) for id, log in moments[-1].events.items()}
                if random.random() < 0.15:
                    model.delete("s1")
                    moments.append(model)  # from now on an answer may be of before or after it
                    await store.delete_session("s1")
                else:
                    batch = [
                        random_event(random, 400).replace(session_id="s1")
                        for _ in range(random.randrange(40))
                    ]
                    model.flush(ExecutionResult(events=batch))
                    moments.append(model)
                    await store.append_events(batch)

        async def read() -> None:
            while not writing.done():
                filter = random_filter(random)
                if random.random() < 0.5:
                    filter |= {"limit": None, "max_bytes": None, "after": None, "before": None}
                begun = len(moments) - 2
                found = await store.get_events("s1", **filter)
                possible = [model.read("s1", **filter) for model in moments[max(begun, 0) :]]
                assert found in possible

        writing = asyncio.create_task(write())
        await asyncio.gather(*(read() for _ in range(4)), writing)


async def _step(random: Random, store: StoreUnderTest, model: StoreModel) -> None:
    session_id = random.choice(SESSIONS)
    match random.choices(
        ("append", "flush", "enqueue", "claim", "release", "read", "runs", "delete"),
        weights=(20, 25, 15, 15, 5, 15, 5, 4),
    )[0]:
        case "append":
            batch, fence = [random_event(random) for _ in range(random.randrange(4))], _fence(random, model)
            outcome = await _outcome(store.append_events, batch, fence=fence if batch else None)
            expected = _expected(model.flush, ExecutionResult(events=batch), fence=fence if batch else None)
            assert _numbered(outcome) == expected
        case "flush":
            written, options = _result(random, model)
            outcome = await _outcome(store.flush, written, **options)
            assert _numbered(outcome) == _expected(model.flush, written, **options)
        case "enqueue":
            asked = run(random.choice(RUNS), session_id, input=random.randrange(2))
            room = random.choice((None, 2, 3))
            outcome = await _outcome(store.enqueue_run, asked, max_open_runs=room)
            assert outcome == _expected(model.enqueue, asked, room)
        case "claim":
            slots, run_id = random.choice((None, 1, 2)), random.choice((None, None, random.choice(RUNS)))
            expected = model.claimable(session_id, slots, run_id)
            got = await store.claim_run(session_id, max_concurrent_runs=slots, run_id=run_id)
            assert (got and (got.id, got.attempt)) == (expected and (expected.id, expected.attempt + 1))
            if got is not None:
                model.runs[session_id, got.id] = got
        case "release":
            fence = _fence(random, model) or Fence(session_id, "r1", 1)
            await store.release_run(fence)
            model.release(fence)
        case "read":
            filter = random_filter(random)
            assert await store.get_events(session_id, **filter) == model.read(session_id, **filter)
            assert await store.get_latest_sequence(session_id) == len(model.events.get(session_id, []))
        case "runs":
            status = random.choice((None, *RunStatus))
            options = {
                "limit": random.choice((None, 1, 2, 3)),
                "after": random.choice((None, *RUNS)),
            }
            outcome = await _outcome(store.list_runs, session_id, status=status, **options)
            assert outcome == _expected(model.list_runs, session_id, status, **options)
            run_id, named = random.choice(RUNS), random.choice((None, session_id))
            outcome = await _outcome(store.get_run, run_id, session_id=named)
            assert outcome == _expected(model.get_run, run_id, named)
        case _:
            await store.delete_session(session_id)
            model.delete(session_id)


async def _outcome(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return await call(*arguments, **options)
    except AsmError as error:
        return type(error)


def _expected(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except AsmError as error:
        return type(error)


def _numbered(outcome: Any) -> Any:
    return [(event.id, event.sequence_number) for event in outcome] if isinstance(outcome, list) else outcome  # pyright: ignore


def random_event(random: Random, ids: int = 60) -> Event:
    """An event of any of the sessions, with one of this many ids."""
    return events(
        1,
        random.choice(SESSIONS),
        id=f"e{random.randrange(ids)}",
        type=random.choice(("custom", "message_sent", "run_started")),
        run_id=random.choice((None, *RUNS)),
        timestamp=NOON + timedelta(minutes=random.randrange(30)),
        data={"random": random.random()},
    )[0]


def _fence(random: Random, model: StoreModel) -> Fence | None:
    if random.random() < 0.5 or not model.runs:
        return None
    one = random.choice(list(model.runs.values()))
    return Fence(one.session_id, one.id, max(0, one.attempt - (random.random() < 0.2)))


def _result(random: Random, model: StoreModel) -> tuple[ExecutionResult, dict[str, Any]]:
    options: dict[str, Any] = {"fence": _fence(random, model)}
    row = saved = None
    if random.random() < 0.4:
        row = session(
            random.choice(SESSIONS),
            random.choice((*SessionStatus, "active", "active", "active")),
            created_at=NOON,
            metadata={"random": random.random()},
        )
        if random.random() < 0.3:
            options["expected_session_status"] = random.choice(("absent", "active"))
        if random.random() < 0.3:
            options["expected_session"] = random.choice((row, model.sessions.get(row.id)))
    if random.random() < 0.6:
        key = (random.choice(SESSIONS), random.choice(RUNS))
        stored = model.runs.get(key)
        saved = run(
            key[1],
            key[0],
            random.choice(list(RunStatus)),
            attempt=0 if stored is None else stored.attempt,
            input=random.randrange(2),
            created_at=NOON,
        )
        if random.random() < 0.3:
            options["expected_run_status"] = random.choice(("absent", "pending", "running"))
        if random.random() < 0.3:
            options["expected_run"] = random.choice((saved, stored))
    return ExecutionResult(row, saved, [random_event(random) for _ in range(random.randrange(3))]), options


def random_filter(random: Random) -> dict[str, Any]:
    """Arguments of `get_events`."""

    def maybe(value: Any) -> Any:
        return random.choice((None, value))

    return {
        "after": maybe(random.randrange(20)),
        "before": maybe(random.randrange(25)),
        "run_id": maybe(random.sample(RUNS, random.randrange(3))),
        "type": maybe(random.sample([EventType.CUSTOM, EventType.MESSAGE_SENT], random.randrange(3))),
        "since": maybe(NOON + timedelta(minutes=random.randrange(30))),
        "limit": maybe(random.randrange(1, 8)),
        "max_bytes": maybe(random.randrange(1, 2000)),
        "order": random.choice(("asc", "desc")),
    }
