"""The suite of every store, first part: its life, sessions, runs, `flush`, compare-and-set."""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.errors import (
    ActorStopped,
    AsmError,
    Conflict,
    InvalidTransition,
    LeaseLost,
    RunNotFound,
    SessionNotFound,
    ValidationError,
)
from asm_runtime.payload import JsonObject
from asm_runtime.ports import ExecutionResult, SessionStore
from asm_runtime.records import Event, Fence, Run, RunStatus, Session, SessionStatus
from asm_runtime.testing.clock import JumpingClock
from asm_runtime.testing.store_case import (
    HOUR_MS,
    TERMINAL_RUNS,
    TERMINAL_SESSIONS,
    StoreCase,
    StoreUnderTest,
    events,
    ids,
    numbers,
    run,
    session,
)

__all__ = ["LifeCase", "RecordsCase"]

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
METHODS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "save_session": ((session(),), {}),
    "get_session": (("s",), {}),
    "list_sessions": ((), {}),
    "delete_session": (("s",), {}),
    "save_run": ((run(),), {}),
    "get_run": (("r",), {}),
    "list_runs": (("s",), {}),
    "get_active_run": (("s",), {}),
    "flush": ((ExecutionResult(),), {}),
    "append_event": ((Event.new(type="custom", session_id="s"),), {}),
    "append_event_with_sequence": ((Event.new(type="custom", session_id="s"),), {}),
    "append_events": (([],), {}),
    "get_events": (("s",), {}),
    "get_latest_sequence": (("s",), {}),
    "enqueue_run": ((run(),), {}),
    "claim_run": (("s",), {}),
    "release_run": ((Fence("s", "r", 1),), {}),
    "list_orphaned_runs": ((), {}),
    "wait_for_runs": (("s",), {"timeout_ms": 0}),
}


class LifeCase(StoreCase):
    """Starting and stopping."""

    def test_every_method_of_the_protocol_is_a_coroutine_function(
        self, clock: JumpingClock, tmp_path: Path
    ) -> None:
        promised = {name for name in vars(SessionStore) if not name.startswith("_")}
        assert promised == set(METHODS) | {"start", "stop"}
        store = self.new_store(clock, tmp_path)
        assert [name for name in promised if not iscoroutinefunction(getattr(store, name))] == []

    async def test_a_store_that_is_not_started_refuses_calls(
        self, clock: JumpingClock, tmp_path: Path
    ) -> None:
        store = self.new_store(clock, tmp_path)
        for method, (arguments, options) in METHODS.items():
            with pytest.raises(ActorStopped):
                await getattr(store, method)(*arguments, **options)

    async def test_a_stopped_store_refuses_calls(self, store: StoreUnderTest) -> None:
        await store.stop()
        for method, (arguments, options) in METHODS.items():
            with pytest.raises(ActorStopped):
                await getattr(store, method)(*arguments, **options)

    async def test_start_returns_the_store_and_starting_again_does_nothing(
        self, store: StoreUnderTest
    ) -> None:
        await store.save_session(session())
        assert await store.start() is store
        assert (await store.get_session("s")).id == "s"

    async def test_stopping_again_does_nothing_and_a_stopped_store_does_not_start(
        self, store: StoreUnderTest
    ) -> None:
        await store.stop()
        await store.stop()
        with pytest.raises(ActorStopped):
            await store.start()

    async def test_a_store_that_was_never_started_can_be_stopped(
        self, clock: JumpingClock, tmp_path: Path
    ) -> None:
        store = self.new_store(clock, tmp_path)
        await store.stop()
        with pytest.raises(ActorStopped):
            await store.start()

    async def test_calls_under_way_when_the_store_stops_are_answered_first(
        self, store: StoreUnderTest
    ) -> None:
        calls = [asyncio.create_task(store.append_event_with_sequence(event)) for event in events(50)]
        await asyncio.sleep(0)
        await store.stop()
        assert numbers(await asyncio.gather(*calls)) == list(range(1, 51))

    async def test_stopping_answers_parked_callers(self, store: StoreUnderTest, clock: JumpingClock) -> None:
        revision = await store.wait_for_runs("s", timeout_ms=0)
        for_events = asyncio.create_task(store.get_events("s", wait_timeout_ms=HOUR_MS))
        for_runs = asyncio.create_task(store.wait_for_runs("s", after=revision, timeout_ms=None))
        await self.begun(clock, for_runs)
        await store.stop()
        assert await for_events == []
        assert await for_runs == revision

    async def test_a_wrong_option_does_not_stop_the_store(self, store: StoreUnderTest) -> None:
        with pytest.raises(TypeError):
            await store.get_events("s", nonsense=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        assert await store.get_events("s") == []


class RecordsCase(StoreCase):
    """Sessions, runs, and the atomic write of both with events."""

    # -- sessions

    async def test_a_session_reads_back_as_it_was_saved(self, store: StoreUnderTest) -> None:
        saved = Session(
            id="s",
            agent_id="agent",
            status=SessionStatus.PAUSED,
            parent_session_id="parent",
            metadata={"deep": [{"a": 1}]},
            context={"cwd": "/"},
            tags=["x", "y", "x"],
            created_at=NOON,
            updated_at=NOON + timedelta(microseconds=1),
        )
        await store.save_session(saved)
        assert await store.get_session("s") == saved

    async def test_saving_a_session_again_replaces_it(self, store: StoreUnderTest) -> None:
        await store.save_session(session(metadata={"a": 1}, tags=["t"]))
        second = session(status="paused", agent_id="b", created_at=NOON)
        await store.save_session(second)
        assert await store.get_session("s") == second
        assert await store.list_sessions() == [second]

    async def test_an_unknown_session_is_not_found(self, store: StoreUnderTest) -> None:
        await store.append_event(events(1)[0])
        with pytest.raises(SessionNotFound):
            await store.get_session("s")

    async def test_a_soft_deleted_session_is_not_found_and_not_listed(self, store: StoreUnderTest) -> None:
        await store.save_session(session().replace(deleted_at=NOON))
        await store.save_session(session("other"))
        with pytest.raises(SessionNotFound):
            await store.get_session("s")
        assert ids(await store.list_sessions()) == ["other"]

    async def test_sessions_are_listed_oldest_first_then_by_id(self, store: StoreUnderTest) -> None:
        for id, minutes in (("c", 2), ("b", 0), ("d", 1), ("a", 1), ("B", 1)):
            await store.save_session(session(id, created_at=NOON + timedelta(minutes=minutes)))
        assert ids(await store.list_sessions()) == ["b", "B", "a", "d", "c"]
        await store.save_session(session("c", created_at=NOON - timedelta(minutes=1)))
        assert ids(await store.list_sessions()) == ["c", "b", "B", "a", "d"]

    async def test_sessions_are_filtered_by_status_and_agent(self, store: StoreUnderTest) -> None:
        for number, (id, status, agent) in enumerate(
            [("1", "active", "a"), ("2", "paused", "a"), ("3", "active", "b"), ("4", "failed", "b")]
        ):
            created = NOON + timedelta(seconds=number)
            await store.save_session(session(id, status, agent_id=agent, created_at=created))
        assert ids(await store.list_sessions(status="active")) == ["1", "3"]
        assert ids(await store.list_sessions(status=SessionStatus.PAUSED)) == ["2"]
        assert ids(await store.list_sessions(status=["failed", "paused"])) == ["2", "4"]
        assert ids(await store.list_sessions(agent_id="b")) == ["3", "4"]
        assert ids(await store.list_sessions(agent_id={"a", "b"}, status={"active"})) == ["1", "3"]
        assert ids(await store.list_sessions(agent_id="nobody")) == []
        assert ids(await store.list_sessions(status=[])) == []
        assert ids(await store.list_sessions(agent_id=())) == []

    async def test_sessions_are_listed_in_pages(self, store: StoreUnderTest) -> None:
        for number in range(5):
            await store.save_session(session(str(number), created_at=NOON + timedelta(seconds=number)))
        await store.save_session(
            session("2", created_at=NOON + timedelta(seconds=2)).replace(deleted_at=NOON)
        )
        assert ids(await store.list_sessions(limit=2)) == ["0", "1"]
        assert ids(await store.list_sessions(limit=2, offset=2)) == ["3", "4"]
        assert ids(await store.list_sessions(offset=3)) == ["4"]
        assert ids(await store.list_sessions(limit=2, offset=4)) == []

    async def test_a_deleted_session_is_gone_with_all_that_belongs_to_it(self, store: StoreUnderTest) -> None:
        for id in ("s", "other"):
            await store.save_session(session(id))
            await store.enqueue_run(run("r", id))
            await store.append_events(events(3, id))
        await store.delete_session("s")
        with pytest.raises(SessionNotFound):
            await store.get_session("s")
        with pytest.raises(RunNotFound):
            await store.get_run("r", session_id="s")
        assert (await store.get_run("r")).session_id == "other"
        assert await store.list_runs("s") == []
        assert await store.get_events("s") == []
        assert await store.get_latest_sequence("s") == 0
        assert await store.claim_run("s") is None
        assert ids(await store.list_sessions()) == ["other"]
        assert numbers(await store.get_events("other")) == [1, 2, 3]
        assert ids(await store.list_runs("other")) == ["r"]

    async def test_a_session_made_anew_begins_at_one(self, store: StoreUnderTest) -> None:
        first = events(2)
        await store.append_events(first)
        await store.delete_session("s")
        assert numbers(await store.append_events(list(reversed(first)))) == [1, 2]
        assert await store.get_latest_sequence("s") == 2

    async def test_deleting_is_idempotent(self, store: StoreUnderTest) -> None:
        await store.delete_session("s")
        await store.save_session(session())
        await store.delete_session("s")
        await store.delete_session("s")
        assert await store.list_sessions() == []

    async def test_a_run_in_flight_on_a_deleted_session_has_lost_its_lease(
        self, store: StoreUnderTest
    ) -> None:
        await store.enqueue_run(run())
        claimed = await store.claim_run("s")
        assert claimed is not None
        await store.delete_session("s")
        with pytest.raises(LeaseLost):
            await store.append_events(events(1), fence=claimed.fence)
        with pytest.raises(LeaseLost):
            await store.flush(ExecutionResult(run=claimed.with_status("completed")), fence=claimed.fence)
        assert await store.get_latest_sequence("s") == 0

    # -- runs

    async def test_a_run_reads_back_as_it_was_saved(self, store: StoreUnderTest) -> None:
        saved = Run(
            id="r",
            session_id="s",
            status=RunStatus.FAILED,
            input={"a": [1, None]},
            output=["x", {"y": 1.0}],
            error={"code": "e", "details": {}},
            metadata={"options": {}},
            turn_count=3,
            token_usage={"input_tokens": 5},
            created_at=NOON,
            started_at=NOON + timedelta(seconds=1),
            ended_at=NOON + timedelta(seconds=2, microseconds=3),
            provider="p",
            provider_metadata={"model": "m"},
            cost_usd=0.1,
            owner="nod_x",
            attempt=2,
        )
        await store.save_run(saved)
        assert await store.get_run("r") == saved
        assert await store.list_runs("s") == [saved]

    @pytest.mark.parametrize("value", [None, "", "text", 0, 1.0, True, [], [1], {}, {"a": None}])
    async def test_input_and_output_may_be_any_json_value(self, store: StoreUnderTest, value: Any) -> None:
        await store.save_run(run(input=value).replace(output=value))
        found = await store.get_run("r")
        assert (found.input, found.output) == (value, value)
        assert (type(found.input), type(found.output)) == (type(value), type(value))

    async def test_saving_a_run_again_replaces_it_and_does_not_move_it(self, store: StoreUnderTest) -> None:
        for id, days in (("b", 1), ("a", 0), ("c", 2)):
            await store.save_run(run(id, created_at=NOON - timedelta(days=days)))
        changed = run("a", status="running", metadata={"x": 1}, created_at=NOON + timedelta(days=9))
        await store.save_run(changed)
        assert ids(await store.list_runs("s")) == ["b", "a", "c"]
        assert await store.get_run("a") == changed

    async def test_run_ids_are_unique_within_their_session_only(self, store: StoreUnderTest) -> None:
        await store.save_run(run("r", "one", input=1))
        await store.save_run(run("r", "two", input=2))
        assert (await store.get_run("r", session_id="one")).input == 1
        assert (await store.get_run("r", session_id="two")).input == 2
        with pytest.raises(Conflict):
            await store.get_run("r")
        await store.delete_session("one")
        assert (await store.get_run("r")).input == 2

    async def test_a_run_is_not_found_under_another_session(self, store: StoreUnderTest) -> None:
        await store.save_run(run())
        await store.save_session(session("other"))
        assert (await store.get_run("r", session_id="s")).id == "r"
        for id, session_id in (("r", "other"), ("r", "unknown"), ("unknown", "s"), ("unknown", None)):
            with pytest.raises(RunNotFound):
                await store.get_run(id, session_id=session_id)

    async def test_runs_are_filtered_by_status(self, store: StoreUnderTest) -> None:
        for id, status in (("1", "pending"), ("2", "running"), ("3", "completed"), ("4", "pending")):
            await store.save_run(run(id, status=status))
        assert ids(await store.list_runs("s")) == ["1", "2", "3", "4"]
        assert ids(await store.list_runs("s", status="pending")) == ["1", "4"]
        assert ids(await store.list_runs("s", status=RunStatus.RUNNING)) == ["2"]
        assert ids(await store.list_runs("s", status=["completed", "running"])) == ["2", "3"]
        assert ids(await store.list_runs("s", status=[])) == []
        assert ids(await store.list_runs("s", limit=2)) == ["1", "2"]
        assert ids(await store.list_runs("s", status={"pending"}, limit=1)) == ["1"]
        assert ids(await store.list_runs("unknown")) == []

    async def test_runs_are_listed_in_pages_by_the_last_ones_id(self, store: StoreUnderTest) -> None:
        expected = [f"{index:03}" for index in range(25)]
        for id in expected:
            await store.save_run(run(id, status="pending" if int(id) % 3 else "completed"))
        await store.save_run(run("024", session_id="other"))
        for status, matching in (
            (None, expected),
            ("completed", expected[::3]),
            (["pending", "running"], [id for id in expected if int(id) % 3]),
        ):
            for size in (1, 4, 9, 30):
                listed: list[str] = []
                while page := await store.list_runs(
                    "s", status=status, limit=size, after=listed[-1] if listed else None
                ):
                    assert len(page) <= size
                    listed += ids(page)
                assert listed == matching
        assert ids(await store.list_runs("s", after="020")) == expected[21:]
        assert ids(await store.list_runs("s", after="024")) == []

    async def test_a_cursor_holds_whatever_becomes_of_its_run(self, store: StoreUnderTest) -> None:
        for id in "abc":
            await store.save_run(run(id))
        page = await store.list_runs("s", status="pending", limit=1)
        await store.save_run(page[0].with_status("cancelled"))
        assert ids(await store.list_runs("s", status="pending", after="a")) == ["b", "c"]
        assert ids(await store.list_runs("s", status=[], after="a")) == []
        assert ids(await store.list_runs("s", status="failed", after="a")) == []
        await store.save_run(run("d"))
        assert ids(await store.list_runs("s", after="c")) == ["d"]

    @pytest.mark.parametrize("status", [None, "pending", "failed", []])
    async def test_a_cursor_that_is_no_run_of_the_session_is_not_found(
        self, store: StoreUnderTest, status: Any
    ) -> None:
        for session_id in ("s", "other"):
            await store.save_run(run("r", session_id=session_id))
        await store.save_run(run("elsewhere", session_id="other"))
        for session_id, after in (("s", "unknown"), ("s", "elsewhere"), ("unknown", "r")):
            with pytest.raises(RunNotFound):
                await store.list_runs(session_id, status=status, after=after)
        await store.delete_session("s")
        with pytest.raises(RunNotFound):
            await store.list_runs("s", status=status, after="r")

    async def test_the_active_run_is_the_earliest_started(self, store: StoreUnderTest) -> None:
        assert await store.get_active_run("s") is None
        await store.save_run(run("waits"))
        assert await store.get_active_run("s") is None
        await store.save_run(run("late", status="running", started_at=NOON + timedelta(seconds=1)))
        await store.save_run(run("unknown", status="running"))
        await store.save_run(run("early", status="running", started_at=NOON))
        await store.save_run(run("elsewhere", "other", status="running", started_at=NOON - timedelta(days=1)))
        active = await store.get_active_run("s")
        assert active is not None
        assert active.id == "early"
        await store.save_run(active.with_status("completed"))
        assert (await store.get_active_run("s")) == await store.get_run("late")

    # -- compare-and-set

    async def test_a_session_is_saved_only_if_its_status_is_the_expected_one(
        self, store: StoreUnderTest
    ) -> None:
        with pytest.raises(Conflict):
            await store.save_session(session(), expected_status="active")
        await store.save_session(session(), expected_status="absent")
        for expected in ("absent", "paused", "completed"):
            with pytest.raises(Conflict):
                await store.save_session(session(status="paused"), expected_status=expected)
        assert (await store.get_session("s")).status == "active"
        await store.save_session(session(status="paused"), expected_status=SessionStatus.ACTIVE)
        assert (await store.get_session("s")).status == "paused"

    async def test_a_run_is_saved_only_if_its_status_is_the_expected_one(self, store: StoreUnderTest) -> None:
        with pytest.raises(Conflict):
            await store.save_run(run(), expected_status="pending")
        await store.save_run(run(), expected_status="absent")
        for expected in ("absent", "running", "completed"):
            with pytest.raises(Conflict):
                await store.save_run(run(status="cancelled"), expected_status=expected)
        assert (await store.get_run("r")).status == "pending"
        await store.save_run(run(status="cancelled"), expected_status=RunStatus.PENDING)
        assert (await store.get_run("r")).status == "cancelled"

    async def test_of_two_who_expect_the_same_status_one_wins(self, store: StoreUnderTest) -> None:
        await store.save_session(session())
        outcomes = await asyncio.gather(
            *(
                store.save_session(session(status=status), expected_status="active")
                for status in ("completed", "failed", "cancelled", "paused")
            ),
            return_exceptions=True,
        )
        assert sum(outcome is None for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 3

    @pytest.mark.parametrize("stored", TERMINAL_SESSIONS)
    async def test_a_terminal_session_keeps_its_status(
        self, store: StoreUnderTest, stored: SessionStatus
    ) -> None:
        await store.save_session(session(status=stored))
        for status in SessionStatus:
            if status is stored:
                continue
            for write in (
                store.save_session(session(status=status)),
                store.save_session(session(status=status), expected_status=stored),
                store.flush(ExecutionResult(session=session(status=status))),
            ):
                with pytest.raises(InvalidTransition) as refused:
                    await write
                assert (refused.value.from_status, refused.value.to_status) == (stored, status)
        await store.save_session(session(status=stored, metadata={"late": True}))
        found = await store.get_session("s")
        assert (found.status, found.metadata) == (stored, {"late": True})

    @pytest.mark.parametrize("stored", TERMINAL_RUNS)
    async def test_a_terminal_run_keeps_its_status(self, store: StoreUnderTest, stored: RunStatus) -> None:
        await store.save_run(run(status=stored))
        for status in RunStatus:
            if status is stored:
                continue
            for write in (
                store.save_run(run(status=status)),
                store.save_run(run(status=status), expected_status=stored),
                store.flush(ExecutionResult(run=run(status=status))),
            ):
                with pytest.raises(InvalidTransition) as refused:
                    await write
                assert (refused.value.from_status, refused.value.to_status) == (stored, status)
        await store.save_run(run(status=stored, metadata={"late": True}))
        found = await store.get_run("r")
        assert (found.status, found.metadata) == (stored, {"late": True})

    @pytest.mark.parametrize("status", ["pending", "running"])
    async def test_no_session_becomes_completed_with_open_runs(
        self, store: StoreUnderTest, status: str
    ) -> None:
        await store.save_session(session())
        await store.save_run(run("done", status="completed"))
        await store.save_run(run("open", status=status))
        completed = session(status="completed")
        for write in (
            store.save_session(completed),
            store.save_session(completed, expected_status="active"),
            store.flush(ExecutionResult(session=completed)),
            store.flush(ExecutionResult(session=completed, run=run("another", status="completed"))),
            store.flush(ExecutionResult(session=completed, run=run("open", "other", status="completed"))),
        ):
            with pytest.raises(Conflict):
                await write
        assert (await store.get_session("s")).status == "active"
        assert ids(await store.list_runs("s")) == ["done", "open"]
        for other in ("failed", "cancelled"):
            await store.save_session(session(other, status="active"))
            await store.save_run(run("open", other, status=status))
            await store.save_session(session(other, status=other))

    async def test_a_new_session_is_not_completed_over_open_runs_either(self, store: StoreUnderTest) -> None:
        await store.save_run(run())
        with pytest.raises(Conflict):
            await store.save_session(session(status="completed"))
        with pytest.raises(SessionNotFound):
            await store.get_session("s")

    async def test_completion_is_judged_by_the_runs_after_the_write(self, store: StoreUnderTest) -> None:
        await store.save_session(session())
        await store.save_run(run(status="running"))
        with pytest.raises(Conflict):
            await store.flush(ExecutionResult(session(status="completed"), run("new")))
        await store.flush(ExecutionResult(session(status="completed"), run(status="completed")))
        assert (await store.get_session("s")).status == "completed"

    # -- flush

    async def test_flush_stores_a_session_a_run_and_events_at_once(self, store: StoreUnderTest) -> None:
        appended = [*events(2), *events(1, "other")]
        written = ExecutionResult(session(), run(status="running"), appended)
        stored = await store.flush(written)
        assert ids(stored) == ids(appended)
        assert numbers(stored) == [1, 2, 1]
        assert await store.get_session("s") == written.session
        assert await store.get_run("r") == written.run
        assert await store.get_events("s") == stored[:2]

    async def test_each_part_of_a_flush_is_optional(self, store: StoreUnderTest) -> None:
        assert await store.flush(ExecutionResult()) == []
        assert await store.flush(ExecutionResult(session=session())) == []
        assert await store.flush(ExecutionResult(run=run())) == []
        assert numbers(await store.flush(ExecutionResult(events=events(1)))) == [1]

    async def test_events_flushed_twice_are_stored_once(self, store: StoreUnderTest) -> None:
        written = ExecutionResult(run=run(status="completed"), events=events(2))
        first = await store.flush(written)
        assert await store.flush(written) == first
        assert await store.get_events("s") == first

    async def test_flush_writes_only_if_the_statuses_are_the_expected_ones(
        self, store: StoreUnderTest
    ) -> None:
        both = ExecutionResult(session(), run())
        await store.flush(both, expected_session_status="absent", expected_run_status="absent")
        ended = ExecutionResult(session(status="failed"), run(status="failed"))
        for expected_session, expected_run in (
            ("absent", None),
            ("paused", "pending"),
            ("active", "running"),
        ):
            with pytest.raises(Conflict):
                await store.flush(
                    ended, expected_session_status=expected_session, expected_run_status=expected_run
                )
        await store.flush(ended, expected_session_status="active", expected_run_status="pending")
        assert (await store.get_run("r")).status == "failed"

    async def test_a_status_expected_of_a_missing_part_is_refused(self, store: StoreUnderTest) -> None:
        with pytest.raises(ValidationError):
            await store.flush(ExecutionResult(run=run()), expected_session_status="active")
        with pytest.raises(ValidationError):
            await store.flush(ExecutionResult(session=session()), expected_run_status="pending")

    @pytest.mark.parametrize(
        "changes",
        [
            {"metadata": {"title": "new"}},
            {"metadata": {"a": 1.0, "b": [1, {"c": None}]}},
            {"updated_at": datetime(2024, 1, 2, tzinfo=UTC)},
            {"tags": ["x"]},
            {"deleted_at": datetime(2024, 1, 2, tzinfo=UTC)},
        ],
    )
    async def test_flush_writes_only_if_the_session_is_the_expected_one(
        self, store: StoreUnderTest, changes: dict[str, Any]
    ) -> None:
        seen = session(metadata={"b": [1, {"c": None}], "a": 1})
        paused = ExecutionResult(seen.with_status("paused"), events=events(1))
        with pytest.raises(Conflict):
            await store.flush(paused, expected_session=seen)
        await store.save_session(seen.replace(**changes))
        with pytest.raises(Conflict):
            await store.flush(paused, expected_session=seen)
        assert await store.get_events("s") == []
        await store.save_session(seen)
        assert numbers(await store.flush(paused, expected_session=seen)) == [1]
        assert (await store.get_session("s")).status == "paused"

    @pytest.mark.parametrize(
        "changes",
        [
            {"attempt": 1},
            {"metadata": {"edited": True}},
            {"input": {"prompt": "new"}},
            {"cost_usd": 0.0},
            {"error": {}},
        ],
    )
    async def test_flush_writes_only_if_the_run_is_the_expected_one(
        self, store: StoreUnderTest, changes: dict[str, Any]
    ) -> None:
        seen = run(metadata={"a": {"b": 1}})
        ended = ExecutionResult(run=seen.with_status("cancelled"), events=events(1))
        with pytest.raises(Conflict):
            await store.flush(ended, expected_run=seen)
        await store.save_run(seen.replace(**changes))
        with pytest.raises(Conflict):
            await store.flush(ended, expected_run=seen)
        assert await store.get_events("s") == []
        await store.save_run(seen)
        assert numbers(await store.flush(ended, expected_run=seen)) == [1]
        assert (await store.get_run("r")).status == "cancelled"

    async def test_a_row_that_was_read_is_the_expected_one(self, store: StoreUnderTest) -> None:
        """The order of keys does not matter, nor which copy it is."""
        await store.flush(
            ExecutionResult(session(metadata={"b": 2, "a": 1}), run(input={"y": 0.5, "x": [1]}))
        )
        seen_session, seen_run = await store.get_session("s"), await store.get_run("r")
        turned = seen_session.replace(metadata={"a": 1, "b": 2})
        written = ExecutionResult(seen_session, seen_run, events(1))
        assert numbers(
            await store.flush(
                written, expected_session=turned, expected_run=seen_run, expected_run_status="pending"
            )
        ) == [1]

    async def test_a_status_that_came_back_is_not_the_same_row(self, store: StoreUnderTest) -> None:
        """It was claimed and queued again between the look and the write."""
        seen = await store.enqueue_run(run())
        claimed = await store.claim_run("s")
        assert claimed is not None
        await store.flush(ExecutionResult(run=claimed.with_status("pending")), fence=claimed.fence)
        ended = ExecutionResult(run=seen.with_status("cancelled"))
        with pytest.raises(Conflict):
            await store.flush(ended, expected_run_status="pending", expected_run=seen)

    async def test_a_fence_is_judged_before_the_expected_rows(self, store: StoreUnderTest) -> None:
        await store.save_run(run())
        with pytest.raises(LeaseLost):
            await store.flush(
                ExecutionResult(run=run()), fence=Fence("s", "r", 7), expected_run=run(metadata={"x": 1})
            )

    async def test_a_row_expected_of_another_or_a_missing_part_is_refused(
        self, store: StoreUnderTest
    ) -> None:
        refused: list[tuple[ExecutionResult, dict[str, Any]]] = [
            (ExecutionResult(), {"expected_session": session()}),
            (ExecutionResult(), {"expected_run": run()}),
            (ExecutionResult(session()), {"expected_session": session("other")}),
            (ExecutionResult(run=run()), {"expected_run": run("other")}),
            (ExecutionResult(run=run()), {"expected_run": run(session_id="other")}),
            (ExecutionResult(session()), {"expected_session": "active"}),
            (ExecutionResult(run=run()), {"expected_run": session()}),
        ]
        for written, options in refused:
            with pytest.raises(ValidationError):
                await store.flush(written, **options)

    @pytest.mark.parametrize(
        ("changed", "options", "error"),
        [
            (ExecutionResult(session(), run()), {"expected_session_status": "paused"}, Conflict),
            (ExecutionResult(session(), run()), {"expected_session": session(tags=["x"])}, Conflict),
            (ExecutionResult(session(), run()), {"expected_run": run()}, Conflict),
            (ExecutionResult(session(), run()), {"expected_run_status": "absent"}, Conflict),
            (ExecutionResult(session(status="failed"), run("ended")), {}, InvalidTransition),
            (ExecutionResult(session("ended"), run(status="failed")), {}, InvalidTransition),
            (ExecutionResult(session(status="completed"), run("new")), {}, Conflict),
            (
                ExecutionResult(session(status="failed"), run(status="failed")),
                {"fence": Fence("s", "r", 7)},
                LeaseLost,
            ),
        ],
        ids=[
            "session status",
            "session",
            "run",
            "run status",
            "ended run",
            "ended session",
            "open runs",
            "fence",
        ],
    )
    async def test_a_flush_that_fails_leaves_nothing_behind(
        self,
        store: StoreUnderTest,
        changed: ExecutionResult,
        options: dict[str, Any],
        error: type[AsmError],
    ) -> None:
        before = ExecutionResult(session(), run(status="running", attempt=1), events(1))
        await store.flush(before)
        await store.save_session(session("ended", status="cancelled"))
        await store.save_run(run("ended", status="completed"))
        written = ExecutionResult(changed.session, changed.run, [*events(2), *events(1, "other")])
        with pytest.raises(error):
            await store.flush(written, **options)
        assert await store.get_session("s") == before.session
        assert await store.get_run("r") == before.run
        assert ids(await store.list_runs("s")) == ["r", "ended"]
        assert (await store.get_session("ended")).status == "cancelled"
        assert numbers(await store.get_events("s")) == [1]
        assert await store.get_latest_sequence("other") == 0
        assert numbers(await store.append_events(events(1))) == [2]

    # -- copies

    async def test_what_a_caller_does_to_its_dicts_changes_nothing_stored(
        self, store: StoreUnderTest
    ) -> None:
        def payload() -> JsonObject:
            return {"list": [1, {"deep": True}], "dict": {}}

        def spoil(value: JsonObject) -> None:
            value["list"][1]["deep"] = False
            value["list"].append(2)
            value["dict"]["new"] = 1

        async def read() -> list[JsonObject]:
            records: list[Any] = [await store.get_session("s"), *await store.list_sessions()]
            found = [part for record in records for part in (record.metadata, record.context)]
            records = [await store.get_run("r"), *await store.list_runs("s"), await store.get_active_run("s")]
            found += [part for record in records for part in (record.input, record.metadata)]
            records = await store.get_events("s") + await store.append_events([event])
            return found + [part for record in records for part in (record.data, record.metadata)]

        owner = session(metadata=payload(), context=payload())
        enqueued = run(input=payload(), metadata=payload())
        event = events(1, data=payload(), metadata=payload())[0]
        await store.save_session(owner)
        accepted = await store.enqueue_run(enqueued)
        appended = await store.append_event_with_sequence(event)
        claimed = await store.claim_run("s")
        assert claimed is not None
        assert claimed.input == accepted.input == payload()
        for record in (enqueued, accepted, claimed):
            spoil(record.input)
            spoil(record.metadata)
        for one in (event, appended):
            spoil(one.data)
            spoil(one.metadata)
        spoil(owner.metadata)
        spoil(owner.context)
        for _ in range(2):
            found = await read()
            assert found == [payload()] * len(found)
            for value in found:
                spoil(value)

    async def test_callers_that_are_given_the_same_event_share_no_dict(
        self, store: StoreUnderTest, clock: JumpingClock
    ) -> None:
        given = events(1, data={"list": []}, metadata={"list": []})[0]
        parked = [asyncio.create_task(store.get_events("s", wait_timeout_ms=HOUR_MS)) for _ in range(3)]
        await clock.advance_ms(0)
        batches = await asyncio.gather(
            *(store.append_events([given, given]) for _ in range(3)),
            *(store.flush(ExecutionResult(events=[given, given])) for _ in range(2)),
            *parked,
        )
        batches += await asyncio.gather(
            store.append_events([given, given]),
            store.flush(ExecutionResult(events=[given])),
            *(store.get_events("s") for _ in range(2)),
        )
        batches.append([await store.append_event_with_sequence(given)])
        found = [event for batch in batches for event in batch]
        assert len(found) == 19
        for event in found:
            assert (event.data, event.metadata) == ({"list": []}, {"list": []})
            event.data["list"].append(1)
            event.metadata["list"].append(1)
        assert (given.data, given.metadata) == ({"list": []}, {"list": []})

    async def test_callers_that_are_given_the_same_run_share_no_dict(self, store: StoreUnderTest) -> None:
        given = run(input={"list": []}, metadata={"list": []})
        found = await asyncio.gather(*(store.enqueue_run(given) for _ in range(3)))
        found += await asyncio.gather(*(store.get_run("r") for _ in range(2)))
        found += [*await store.list_runs("s"), *await store.list_runs("s")]
        found += [one for one in (await store.claim_run("s"), await store.get_active_run("s")) if one]
        assert len(found) == 9
        for one in found:
            assert (one.input, one.metadata) == ({"list": []}, {"list": []})
            one.input["list"].append(1)
            one.metadata["list"].append(1)
        assert (given.input, given.metadata) == ({"list": []}, {"list": []})
