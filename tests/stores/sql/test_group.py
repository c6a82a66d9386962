"""Many requests in one transaction: what they cost, and what fails alone."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from asm_runtime import Event, Run, Session
from asm_runtime.errors import ActorStopped, Conflict, LeaseLost, StoreError, ValidationError
from asm_runtime.observer import Observer, set_observer
from asm_runtime.ports import ExecutionResult, Fence
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql import operations
from asm_runtime.stores.sql.sqlite.changes import FORGET_EVERY, KEPT_CHANGES
from asm_runtime.stores.sql.sqlite.transaction import (
    MAX_CHANGE_BYTES,
    PORTION_BYTES,
    Cursor,
    SQLiteTransaction,
)
from asm_runtime.stores.sql.store import PART_BYTES
from tests.stores.sql.sqlite.inside import connections, database


def events(count: int, session_id: str = "s", **fields: Any) -> list[Event]:
    return [Event.new(type="custom", session_id=session_id, **fields) for _ in range(count)]


class Statements:
    """The statements that the writer ran."""

    def __init__(self) -> None:
        self.run: list[str] = []

    @property
    def kinds(self) -> list[str]:
        """Their first words."""
        return [statement.split()[0] for statement in self.run]


async def traced(store: SQLSessionStore) -> Statements:
    seen = Statements()
    await connections(store).write(lambda cursor: cursor.connection.set_trace_callback(seen.run.append))  # type: ignore[attr-defined]  # sqlite3's
    return seen


@contextmanager
def observed() -> Generator[list[tuple[int, int]]]:
    groups: list[tuple[int, int]] = []

    class Watching(Observer):
        def group_committed(self, requests: int, events: int) -> None:
            groups.append((requests, events))

    before = set_observer(Watching())
    try:
        yield groups
    finally:
        set_observer(before)


async def occupied(store: SQLSessionStore) -> asyncio.Event:
    """Have the writer busy until the event is set, so that what is asked meanwhile is one group."""
    gate, opened = threading.Event(), asyncio.Event()
    connections(store).write(lambda _: gate.wait())

    async def open_gate() -> None:
        await opened.wait()
        gate.set()

    store.spawn(open_gate())
    return opened


# -- what a group costs


@pytest.mark.parametrize("count", [1, 4, 60])
async def test_a_group_of_appends_to_many_sessions_takes_as_many_statements_as_one(
    store: SQLSessionStore, count: int
) -> None:
    await store.append_event(*events(1, "s0"))
    seen = await traced(store)
    await asyncio.gather(*(store.append_event(*events(1, f"s{index}")) for index in range(count)))
    inserts = {1: 1, 4: 1, 60: 4}[count]  # 60 = 32 + 16 + 8 + 4
    assert seen.kinds == ["BEGIN", "SELECT", *["INSERT"] * inserts, "INSERT", "INSERT", "COMMIT"]


async def test_a_batch_inserts_sixty_four_events_a_statement(store: SQLSessionStore) -> None:
    seen = await traced(store)
    await store.append_events(events(64 * 5))
    assert sum("asm_events" in statement for statement in seen.run) == 5


async def test_fences_of_a_group_cost_one_statement(store: SQLSessionStore) -> None:
    for index in range(5):
        await store.enqueue_run(Run.new(session_id="s", id=str(index)))
    fences = [run.fence for run in [await store.claim_run("s") for _ in range(5)] if run is not None]
    seen = await traced(store)
    await asyncio.gather(*(store.append_events(events(1), fence=fence) for fence in fences))
    assert seen.kinds == ["BEGIN", "SELECT", "SELECT", "INSERT", "INSERT", "INSERT", "INSERT", "COMMIT"]


async def test_a_group_that_changes_nothing_writes_nothing(store: SQLSessionStore, file: str) -> None:
    (known,) = await store.append_events(events(1))
    written = await asyncio.to_thread(os.path.getsize, f"{file}-wal")
    seen = await traced(store)
    with observed() as groups:
        await asyncio.gather(
            store.append_event(known),
            store.append_events([]),
            store.claim_run("s"),
            store.release_run(Fence("s", "r", 1)),
            store.delete_session("unknown"),
        )
    assert groups == []
    assert await asyncio.to_thread(os.path.getsize, f"{file}-wal") == written
    assert "COMMIT" in seen.kinds


async def test_the_observer_is_told_of_each_commit(store: SQLSessionStore) -> None:
    with observed() as groups:
        gate = await occupied(store)
        first = asyncio.create_task(store.append_events(events(3)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = [asyncio.create_task(store.append_events(events(2))) for _ in range(4)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *rest)
    assert groups == [(1, 3), (4, 8)]


async def test_a_large_group_after_a_lull_is_written_in_two_halves(store: SQLSessionStore) -> None:
    with observed() as groups:
        await asyncio.gather(*(store.append_event(*events(1)) for _ in range(100)))
    assert groups == [(50, 50), (50, 50)]
    assert await store.get_latest_sequence("s") == 100


async def test_huge_events_are_written_few_at_a_time(store: SQLSessionStore) -> None:
    seen = await traced(store)
    large = {"a": "x" * (PORTION_BYTES // 3)}
    stored = await store.append_events([*events(8, data=large), *events(1)])
    written = [statement.count("evt_") for statement in seen.run if "INTO asm_events" in statement]
    assert sum(written) == 9
    assert max(written) <= 3
    assert await store.get_events("s") == stored


async def test_what_came_after_many_bytes_is_written_in_a_transaction_of_its_own(
    store: SQLSessionStore,
) -> None:
    data = {"a": "x" * (PART_BYTES // 20)}
    with observed() as groups:
        await asyncio.gather(*(store.append_events(events(10, data=data)) for _ in range(5)))
    assert groups == [(2, 20), (2, 20), (1, 10)]
    ends = [ExecutionResult(events=events(10, data=data)) for _ in range(5)]
    with observed() as groups:
        await asyncio.gather(*map(store.flush, ends))
    assert groups == [(2, 20), (2, 20), (1, 10)]


async def test_a_huge_batch_is_one_transaction_and_lets_others_take_their_turn(
    store: SQLSessionStore,
) -> None:
    batch = events(3_000)
    turns = 0
    with observed() as groups:
        appending = asyncio.ensure_future(store.append_events(batch))
        while not groups:
            await asyncio.sleep(0)
            turns += 1
        assert [event.id for event in await appending] == [event.id for event in batch]
    assert groups == [(1, 3_000)]
    assert turns > 5
    # Again: each is a duplicate, looked up in portions.
    seen = await traced(store)
    again = await store.append_events(batch)
    assert [event.sequence_number for event in again] == [*range(1, 3_001)]
    assert (
        sum("json_array" in statement and "asm_events" in statement for statement in seen.run) >= 3_000 // 256
    )


async def test_a_payload_too_large_to_copy_on_the_loop_is_stored_like_another(store: SQLSessionStore) -> None:
    data = {"list": [{"number": number, "text": "ü\n"} for number in range(5_000)], "text": '"' * 1_000_000}
    (stored, *_) = await store.append_events(events(1, data=data))
    await store.append_event(*events(1, data=data, metadata=data))
    run = Run.new(session_id="s", id="r", input=data)
    await store.enqueue_run(run)
    assert [event.data for event in await store.get_events("s")] == [data, data]
    assert stored.data == data
    assert await store.get_run("r") == run
    with pytest.raises(ValidationError, match=r"list\[4999\]"):
        await store.append_events([events(1)[0].replace(data={"list": [0] * 4_999 + [b""] + [0]})])


# -- what fails alone


async def test_a_refused_request_of_a_group_fails_alone(store: SQLSessionStore) -> None:
    await store.save_session(Session.new(id="s", agent_id="a", status="completed"))
    with observed() as groups:
        outcomes = await asyncio.gather(
            store.append_event_with_sequence(*events(1)),
            store.save_session(Session.new(id="s", agent_id="a"), expected_status="absent"),
            store.append_events(events(2), fence=Fence("s", "r", 1)),
            store.append_event_with_sequence(*events(1)),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [Event, Conflict, LeaseLost, Event]
    assert groups == [(4, 2)]
    assert [event.sequence_number for event in await store.get_events("s")] == [1, 2]


async def test_a_request_that_fails_in_the_middle_of_its_writing_fails_alone(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half written, so the whole group is rolled back, and each is run again by itself."""
    whole = operations.save_run

    def half(transaction: SQLiteTransaction, run: Run, expected: str | None) -> None:
        whole(transaction, run, expected)
        if run.id == "bad":
            transaction.cursor.execute("INSERT INTO asm_nothing VALUES (1)")

    monkeypatch.setattr(operations, "save_run", half)
    outcomes = await asyncio.gather(
        store.append_event_with_sequence(*events(1)),
        *(store.save_run(Run.new(session_id="s", id=id)) for id in ("good", "bad", "fine")),
        store.append_event_with_sequence(*events(1)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [Event, type(None), StoreError, type(None), Event]
    assert [run.id for run in await store.list_runs("s")] == ["good", "fine"]
    assert [event.sequence_number for event in await store.get_events("s")] == [1, 2]


async def test_a_programming_error_in_a_request_is_a_store_error_of_that_request(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(operations, "delete_session", broken)
    outcomes = await asyncio.gather(
        store.delete_session("s"), store.append_event_with_sequence(*events(1)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [StoreError, Event]
    assert isinstance(outcomes[0], StoreError)
    assert isinstance(outcomes[0].__cause__, ZeroDivisionError)


async def test_what_is_being_committed_when_the_store_crashes_is_whole_though_nobody_hears_of_it(
    store: SQLSessionStore, file: str
) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    at_work, gate = threading.Event(), threading.Event()

    def hold(_: Cursor) -> None:
        at_work.set()
        gate.wait()

    ready = connections(store).write(hold)
    await asyncio.to_thread(at_work.wait)  # a connection that is only being made writes nothing any more
    appends = [asyncio.ensure_future(store.append_events(events(2))) for _ in range(100)]
    for _ in range(3):
        await asyncio.sleep(0)
    written = connections(store).write(lambda _: None)  # comes after them
    store.crash(ValueError("enough"))
    gate.set()
    await asyncio.gather(ready, written)
    for append in appends:
        with pytest.raises(ActorStopped):
            await append
    async with SQLSessionStore(f"sqlite:///{file}") as other:
        assert len(await other.get_events("s")) == 200  # they were on their way: in two halves
    assert complaints == []


# -- duplicates and counters


async def test_new_events_are_inserted_without_looking_for_duplicates_first(store: SQLSessionStore) -> None:
    seen = await traced(store)
    await store.append_events(events(10))
    assert not any("UNION" in statement or "FROM asm_events" in statement for statement in seen.run)


async def test_duplicates_in_a_group_of_others_get_what_is_stored(store: SQLSessionStore) -> None:
    (known,) = await store.append_events(events(1))
    fresh = events(3)
    first, again, *others = await asyncio.gather(
        store.append_events([fresh[0], known, fresh[0], fresh[1]]),
        store.append_event_with_sequence(fresh[1].replace(data={"other": 1})),
        store.append_event_with_sequence(fresh[2]),
        store.append_event_with_sequence(*events(1, "other", id=known.id)),
    )
    assert [event.sequence_number for event in first] == [2, 1, 2, 3]
    assert first[1] == known
    assert again == first[3]
    assert [event.sequence_number for event in others] == [4, 1]


async def test_a_counter_that_was_lost_or_set_back_does_not_stop_the_log(
    store: SQLSessionStore, file: str
) -> None:
    await store.append_events(events(5))
    for damage in ("DELETE FROM asm_session_sequences", "UPDATE asm_session_sequences SET last_sequence = 2"):
        await asyncio.to_thread(execute, file, damage)
        latest = len(await store.get_events("s"))
        assert (await store.append_event_with_sequence(*events(1))).sequence_number == latest + 1


async def test_pruned_numbers_are_not_used_again(store: SQLSessionStore, file: str) -> None:
    await store.append_events(events(5))
    await asyncio.to_thread(execute, file, "DELETE FROM asm_events WHERE sequence_number > 2")
    assert await store.get_latest_sequence("s") == 5
    assert (await store.append_event_with_sequence(*events(1))).sequence_number == 6


@pytest.mark.parametrize("id", ["'\"\\/", "ü\u2028\U0001f600", "\x01\x7f", "[1]", "x" * 1024])
async def test_any_id_is_carried_through_the_json_of_the_statements(store: SQLSessionStore, id: str) -> None:
    await asyncio.gather(store.append_events(events(2, id)), store.append_events(events(2, "other")))
    (stored, *_) = await store.append_events(events(1, id, id=id, run_id=id, provider=id, correlation_id=id))
    assert stored.sequence_number == 3
    assert await store.append_event_with_sequence(stored) == stored
    assert await store.get_events(id, run_id=[id, "other"]) == [stored]
    await store.save_session(Session.new(id=id, agent_id=id))
    assert [session.id for session in await store.list_sessions(agent_id=[id, "other"])] == [id]
    await store.save_run(Run.new(session_id=id, id=id).replace(status="running", owner=id))
    assert [run.owner for run in await store.list_orphaned_runs(session_id=id)] == [id]


# -- what others are told


async def test_the_change_feed_keeps_only_the_last_commits(store: SQLSessionStore) -> None:
    for _ in range(KEPT_CHANGES + 2 * FORGET_EVERY):
        await store.append_event(*events(1))

    def count(cursor: Cursor) -> int:
        cursor.execute("SELECT count(*) FROM asm_changes")
        return int(cursor.fetchone()[0])

    assert KEPT_CHANGES <= await connections(store).read(count) <= KEPT_CHANGES + FORGET_EVERY


async def test_a_store_that_missed_more_than_the_feed_keeps_reads_again_whatever_it_waits_for(
    store: SQLSessionStore, file: str
) -> None:
    async with SQLSessionStore(f"sqlite:///{file}") as other:
        waiting = asyncio.create_task(store.get_events("s", wait_timeout_ms=60_000))
        (stored,) = await other.append_events(events(1))
        await asyncio.to_thread(
            execute, file, "UPDATE asm_changes SET number = number + 1000, session_ids = '[]'"
        )
        assert await waiting == [stored]


async def test_what_the_change_feed_keeps_is_bounded_in_bytes_and_wakes_all_the_same(
    store: SQLSessionStore, file: str
) -> None:
    def widest(cursor: Cursor) -> int:
        cursor.execute("SELECT max(length(session_ids)) FROM asm_changes")
        return int(cursor.fetchone()[0])

    async with SQLSessionStore(f"sqlite:///{file}") as other:
        await store.append_event(*events(1, "other"))
        waiting = asyncio.create_task(store.get_events("s700", wait_timeout_ms=60_000))
        while not store._looks_soon:
            await asyncio.sleep(0)
        stored = await other.append_events([*(one for n in range(1000) for one in events(1, f"s{n}"))])
        assert await waiting == [stored[700]]
    assert await connections(store).read(widest) <= MAX_CHANGE_BYTES


async def test_a_change_is_told_of_by_name_to_who_has_looked_before(
    store: SQLSessionStore, file: str
) -> None:
    """Nobody else reads again: that is what the feed is kept for."""
    seen: list[list[str] | None] = []
    take = database(store).writer.groups.feed.take

    def noted() -> list[str] | None:
        seen.append(take())
        return seen[-1]

    database(store).writer.groups.feed.take = noted  # type: ignore[method-assign]
    async with SQLSessionStore(f"sqlite:///{file}") as other:
        await store.append_event(*events(1, "mine"))
        await other.append_events([*events(1, "a"), *events(1, "b")])
        await other.append_event(*events(1, "c"))
        await store.append_event(*events(1, "mine"))
        await store.append_event(*events(1, "mine"))
    assert [names if names is None else sorted(names) for names in seen] == [None, ["a", "b", "c"], []]


async def test_who_was_told_of_nothing_is_told_of_what_comes(store: SQLSessionStore, file: str) -> None:
    """The first look knows of no earlier one, and has everybody read again."""
    feed = database(store).writer.groups.feed
    async with SQLSessionStore(f"sqlite:///{file}") as other:
        waiting = asyncio.create_task(store.wait_for_runs("s", after=0, timeout_ms=60_000))
        while feed._seen is None or not store._looks_soon:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        await other.save_run(Run.new(session_id="s", id="r"))
        assert await waiting > 0


async def test_a_commit_that_fails_is_not_acknowledged(store: SQLSessionStore, file: str) -> None:
    """All its statements have succeeded: a constraint of the application is checked at the commit."""
    await asyncio.to_thread(
        execute_script,
        file,
        """
        CREATE TABLE known (type TEXT PRIMARY KEY);
        CREATE TABLE seen (type TEXT REFERENCES known DEFERRABLE INITIALLY DEFERRED);
        CREATE TRIGGER of_the_application AFTER INSERT ON asm_events WHEN new.session_id = 'bad'
        BEGIN INSERT INTO seen VALUES (new.type); END;
        """,
    )

    def enforce(cursor: Cursor) -> None:
        cursor.execute("PRAGMA foreign_keys = 1")

    await connections(store).write(enforce)
    waiting = asyncio.create_task(store.get_events("bad", wait_timeout_ms=60_000))
    with observed() as groups:
        outcomes = await asyncio.gather(
            store.append_event_with_sequence(*events(1)),
            store.append_event_with_sequence(*events(1, "bad")),
            store.append_event_with_sequence(*events(1)),
            return_exceptions=True,
        )
    assert [type(outcome) for outcome in outcomes] == [Event, StoreError, Event]
    assert not waiting.done()
    assert sum(written for _, written in groups) == 2
    assert [event.sequence_number for event in await store.get_events("s")] == [1, 2]
    assert await store.get_latest_sequence("bad") == 0
    waiting.cancel()


async def test_an_own_commit_learns_of_those_of_others_before_it(store: SQLSessionStore, file: str) -> None:
    async with SQLSessionStore(f"sqlite:///{file}") as other:
        waiting = asyncio.create_task(store.get_events("s", run_id="r", wait_timeout_ms=60_000))
        await asyncio.sleep(0)
        stored = await other.append_events(events(1, run_id="r"))
        await store.append_event(*events(1, "unrelated"))
        assert await waiting == stored


async def test_a_session_that_is_deleted_and_made_anew_in_one_group_begins_at_one(
    store: SQLSessionStore,
) -> None:
    await store.append_events(events(3))
    outcomes = await asyncio.gather(
        store.append_events(events(1)),
        store.delete_session("s"),
        store.append_events(events(2)),
        store.flush(ExecutionResult(run=Run.new(session_id="s", id="r"))),
    )
    assert [event.sequence_number for event in outcomes[0]] == [4]
    assert [event.sequence_number for event in outcomes[2]] == [1, 2]
    assert [event.sequence_number for event in await store.get_events("s")] == [1, 2]
    assert await store.get_latest_sequence("s") == 2
    assert await store.wait_for_runs("s", timeout_ms=0) > 0


async def test_the_revision_of_a_session_made_anew_is_past_that_of_the_deleted_one(
    store: SQLSessionStore,
) -> None:
    for index in range(5):
        await store.save_run(Run.new(session_id="s", id=str(index)))
    before = await store.wait_for_runs("s", timeout_ms=0)
    await store.delete_session("s")
    await store.save_run(Run.new(session_id="s", id="r"))
    assert await store.wait_for_runs("s", timeout_ms=0) > before


def execute(file: str, statement: str) -> None:
    connection = sqlite3.connect(file)
    with connection:
        connection.execute(statement)
    connection.close()


def execute_script(file: str, script: str) -> None:
    connection = sqlite3.connect(file)
    connection.executescript(script)
    connection.close()


async def test_a_change_by_others_has_only_those_read_again_whom_it_concerns(
    store: SQLSessionStore, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also right after the older changes were forgotten."""
    take = database(store).writer.groups.feed.take
    taken: list[list[str] | None] = []

    def noted() -> list[str] | None:
        changed = take()
        taken.append(changed)
        return changed

    monkeypatch.setattr(database(store).writer.groups.feed, "take", noted)
    async with SQLSessionStore(f"sqlite:///{file}") as second:
        for number in range(3 * FORGET_EVERY):
            await second.append_events(events(1, f"other {number % 2}"))
            if number % 5 == 0:
                await database(store).changes.look(())
    assert None not in taken[1:]  # the first look knows of no earlier one
    assert {id for changed in taken[1:] for id in changed or ()} == {"other 0", "other 1"}


async def test_who_missed_more_than_is_kept_reads_all_again(store: SQLSessionStore, file: str) -> None:
    async with SQLSessionStore(f"sqlite:///{file}") as second:
        for _ in range(KEPT_CHANGES + 2 * FORGET_EVERY):
            await second.append_events(events(1, "other"))
    assert await database(store).changes.look(()) is None
