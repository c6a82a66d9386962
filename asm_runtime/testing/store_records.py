"""The suite of every store: sessions and runs."""

# ruff: noqa: D102  the names of the tests are their sentences

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asm_runtime.errors import (
    Conflict,
    LeaseLost,
    RunNotFound,
    SessionNotFound,
)
from asm_runtime.payload import JsonObject
from asm_runtime.ports import ExecutionResult
from asm_runtime.records import Run, RunStatus, Session, SessionStatus
from asm_runtime.testing.clock import JumpingClock
from asm_runtime.testing.store_case import (
    HOUR_MS,
    StoreCase,
    StoreUnderTest,
    events,
    ids,
    numbers,
    run,
    session,
)

__all__ = ["RecordsCase"]

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


class RecordsCase(StoreCase):
    """Sessions and runs, and that nobody shares them with the store."""

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
