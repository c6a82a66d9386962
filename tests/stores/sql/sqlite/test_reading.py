"""What reads cost and find: plans, steps, pages, rows that cannot be read."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from random import Random
from typing import Any

import pytest

from asm_runtime import Event, EventType, Run, Session
from asm_runtime.errors import StoreError
from asm_runtime.ports import Order
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.filters import EventFilter
from asm_runtime.stores.sql import paging
from asm_runtime.stores.sql.database import Page
from asm_runtime.stores.sql.rows import event_row
from asm_runtime.stores.sql.sqlite import artifact_statements, opening, reading, statements
from asm_runtime.stores.sql.sqlite.transaction import Cursor
from tests.stores.sql.sqlite.inside import connections

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def events(count: int, session_id: str = "s", **fields: Any) -> list[Event]:
    given: dict[str, Any] = {"type": "custom", "session_id": session_id} | fields
    return [Event.new(**given) for _ in range(count)]


def numbers(found: list[Event]) -> list[int | None]:
    return [event.sequence_number for event in found]


def execute(file: str, statement: str, *parameters: Any) -> None:
    connection = sqlite3.connect(file)
    with connection:
        connection.execute(statement, parameters)
    connection.close()


# -- plans

QUERIES = {
    f"{order} {index} {merged} {runs} {types} {since}": statements.LogQuery(
        order=order, index=index, merged=merged, runs=runs, types=types, since=since
    )
    for order, index, merged, runs, types, since in product(
        ("asc", "desc"), (None, "run_id", "type"), (1, 2, 16), (False, True), (False, True), (False, True)
    )
    if (index or merged == 1) and (index != "run_id" or runs) and (index != "type" or types)
}
FORMS = (statements.page, statements.sizes, statements.page_by_rows)
ONE_ROW = {
    name: statement
    for name, statement in vars(statements).items()
    if name.isupper() and isinstance(statement, str) and not name.startswith("_")
}
ARTIFACTS = {
    name: statement
    for name, statement in vars(artifact_statements).items()
    if name.isupper() and not name.startswith("_") and not name.startswith("INSERT")
}
PLANNED = {
    **ONE_ROW,
    **ARTIFACTS,
    **{
        f"list_artifacts {by_session} {by_run} {deleted}": artifact_statements.list_artifacts(
            by_session=by_session, by_run=by_run, include_deleted=deleted
        )
        for by_session, by_run, deleted in product((False, True), repeat=3)
    },
    **{f"DELETE_SESSION {index}": one for index, one in enumerate(statements.DELETE_SESSION)},
    **{f"{form.__name__} {name}": form(query) for form in FORMS for name, query in QUERIES.items()},
    **{f"reach {name}": statements.reach(query) for name, query in QUERIES.items() if not query.is_exact},
    **{
        f"list_runs {count} {resumed}{' sizes' * sizes}": statements.list_runs(
            statuses=count, resumed=resumed, sizes=sizes
        )
        for count, resumed, sizes in product((None, 1, 2, 6), (False, True), (False, True))
    },
    **{
        f"list_orphans {of_one}{' sizes' * sizes}": statements.list_orphans(of_one=of_one, sizes=sizes)
        for of_one, sizes in product((False, True), (False, True))
    },
    **{
        f"list_sessions {count} {agents}{' sizes' * sizes}": statements.list_sessions(
            statuses=count, agents=agents, sizes=sizes
        )
        for count, agents, sizes in product((None, 1, 3), (None, 1, 2), (False, True))
    },
}
LOG = "sqlite_autoindex_asm_events_1 (session_id=? AND sequence_number>?"
BY_RUN = "asm_events_run_id (session_id=? AND run_id=? AND sequence_number>?"
SORTS_A_FEW = {"ACTIVE_RUN"}
"""Sorts the running runs of one session."""


@pytest.fixture(scope="module")
def empty() -> Iterator[sqlite3.Connection]:
    """A database with our tables."""
    connection = opening.connect(":memory:", 0)
    opening.upgrade_on(connection)
    yield connection
    connection.close()


def plan_of(connection: sqlite3.Connection, name: str) -> list[str]:
    statement = PLANNED[name]
    parameters: Any
    if name[0].islower():
        parameters = dict.fromkeys(re.findall(r":(\w+)", statement))
    else:
        highest = max(map(int, re.findall(r"\?(\d+)", statement)), default=statement.count("?"))
        parameters = (None,) * highest
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]


@pytest.mark.parametrize("name", PLANNED)
def test_every_statement_goes_by_an_index_and_sorts_nothing(empty: sqlite3.Connection, name: str) -> None:
    plan = plan_of(empty, name)
    # That index holds the running runs alone, that table what is being removed.
    scans = [step for step in plan if step.startswith("SCAN asm_")]
    assert [step for step in scans if "asm_runs_running" not in step and "asm_removals" not in step] == []
    sorts = [step for step in plan if "TEMP B-TREE" in step and "DISTINCT" not in step]
    assert sorts == [] or name in SORTS_A_FEW


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("page asc None 1 False False False", LOG),
        ("page desc None 1 False False True", LOG),
        (
            "page asc type 2 False True False",
            "asm_events_type (session_id=? AND type=? AND sequence_number>?",
        ),
        ("page asc run_id 2 True True False", BY_RUN),
        ("page desc run_id 16 True False False", BY_RUN),
        ("sizes desc run_id 1 True False True", BY_RUN),
        ("reach asc run_id 1 True True False", "COVERING INDEX " + BY_RUN),
        ("reach desc None 1 True False False", "COVERING INDEX " + LOG),
        ("page desc None 1 True True False", LOG),
        ("list_runs None False", "asm_runs_position (session_id=? AND position>?)"),
        ("list_runs None True", "asm_runs_position (session_id=? AND position>?)"),
        ("list_runs 2 False", "asm_runs_queue (session_id=? AND status=? AND position>?)"),
        ("list_runs 2 True", "asm_runs_queue (session_id=? AND status=? AND position>?)"),
        ("list_sessions None None", "asm_sessions_created_at ((created_at,id)>"),
        ("list_sessions None 2", "asm_sessions_agent_id (agent_id=? AND (created_at,id)>"),
        ("list_sessions 3 2", "asm_sessions_status (status=? AND (created_at,id)>"),
        ("list_runs 2 True sizes", "asm_runs_queue (session_id=? AND status=? AND position>?)"),
        ("list_sessions 3 2 sizes", "asm_sessions_status (status=? AND (created_at,id)>"),
        ("list_orphans False", "asm_runs_running ((session_id,position)>"),
        ("list_orphans True", "(session_id=? AND status=? AND position>?)"),
        ("list_artifacts False False False", "asm_artifacts_created_at ((created_at,id)>"),
        ("list_artifacts True False False", "asm_artifacts_session_id (session_id=? AND (created_at,id)>"),
        ("list_artifacts True True True", "asm_artifacts_session_id (session_id=? AND (created_at,id)>"),
        ("list_artifacts False True False", "asm_artifacts_run_id (run_id=? AND (created_at,id)>"),
        ("LIVE_ARTIFACT", "asm_artifacts_key (key=?)"),
        ("ARTIFACT_STATS", "asm_artifacts_session_id (session_id=?)"),
        ("OWNERS", "asm_runs_running"),
        ("CLAIM_FIRST_FACTS", "asm_runs_queue (session_id=? AND status=? AND position>?)"),
        ("FIND_RUN", "asm_runs_id (id=?)"),
        ("STORED_EVENTS", "asm_events_id (session_id=? AND id=?)"),
    ],
)
def test_the_hot_statements_go_by_the_index_made_for_them(
    empty: sqlite3.Connection, name: str, index: str
) -> None:
    assert any(index in step for step in plan_of(empty, name))


async def test_every_index_is_the_way_of_a_statement(empty: sqlite3.Connection) -> None:
    """Each costs pages with every row that is written."""
    ways = " ".join(step for name in PLANNED for step in plan_of(empty, name))
    indexes = {name for (name,) in empty.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert {
        name for name in indexes if f"INDEX {name} " not in f"{ways} " and "_autoindex_" not in name
    } == set()


def read_page(cursor: Cursor, session_id: str = "s", **filter: Any) -> Page:
    return reading.event_page(
        cursor,
        session_id,
        EventFilter.checked(**filter),
        limit=paging.PAGE_ROWS,
        max_bytes=paging.PAGE_BYTES,
        examined=paging.EXAMINED_AT_FIRST,
        has_room=True,
    )


async def steps(store: SQLSessionStore, job: Callable[[Cursor], object]) -> int:
    """How many steps SQLite's machine takes for a job, on a connection that has done it before."""
    count = 0

    def one() -> int:
        nonlocal count
        count += 1
        return 0

    def measure(cursor: Cursor) -> None:
        plain: Any = cursor  # sqlite3's own
        connection = plain.connection
        job(cursor)
        connection.set_progress_handler(one, 1)
        job(cursor)
        connection.set_progress_handler(None, 1)

    await connections(store).read(measure)
    return count


@pytest.mark.parametrize(
    "filter",
    [
        {},
        {"order": "desc"},
        {"type": "custom"},
        {"run_id": ["r", "q"]},
        {"run_id": "r", "type": ["custom", "run_started"]},
        {"run_id": [str(number) for number in range(20)] + ["r"]},
        {"run_id": [str(number) for number in range(300)] + ["r"]},
        {"since": NOON},
        {"since": NOON, "run_id": "r"},
        {"since": NOON, "order": "desc", "type": "custom"},
        {"type": ["message_streamed", "custom"]},
    ],
)
async def test_a_page_costs_the_same_however_long_the_log_is(store: SQLSessionStore, filter: Any) -> None:
    def page(cursor: Cursor) -> None:
        after = 0 if "order" in filter else 1000
        assert read_page(cursor, after=after, limit=100, **filter).events

    await store.append_events(events(3000, run_id="r"))
    short = await steps(store, page)
    await store.append_events(events(4000, run_id="r"))
    assert abs(await steps(store, page) - short) < 50  # a bisection may take another way


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_what_is_later_is_found_without_reading_what_is_not(
    store: SQLSessionStore, order: Order
) -> None:
    cost: list[int] = []
    for count in (100, 4000):
        log = [*events(count, str(count), timestamp=NOON), *events(3, str(count))]
        for number, event in enumerate(log[:-3]):
            log[number] = event.replace(timestamp=NOON - timedelta(seconds=number % 50))
        await store.append_events(log)

        def page(cursor: Cursor, session_id: str = str(count)) -> None:
            assert len(read_page(cursor, session_id, since=NOON, order=order).events) == 3

        cost.append(await steps(store, page))
    assert cost[1] < 1.5 * cost[0]


async def test_a_rare_run_is_found_at_the_cost_of_its_own_events(store: SQLSessionStore) -> None:
    def page(cursor: Cursor) -> None:
        assert len(read_page(cursor, run_id="rare").events) == 3

    await store.append_events(events(3, run_id="rare"))
    few = await steps(store, page)
    await store.append_events(events(4000, run_id="r"))
    assert await steps(store, page) == few


@pytest.mark.parametrize(
    "filter",
    [
        {"run_id": "absent"},
        {"run_id": [f"absent {number}" for number in range(20)]},
        {"run_id": [f"absent {number}" for number in range(256)]},
        {"type": "run_failed"},
        {"type": list(EventType)[:5]},
        {"run_id": "r", "type": "run_failed"},
        {"run_id": "absent", "type": "custom"},
        {"since": NOON},
        {"since": NOON, "order": "desc"},
        {"since": NOON, "run_id": "r"},
        {"since": NOON, "type": ["custom", "message_streamed"]},
    ],
)
async def test_that_there_is_nothing_is_found_at_the_same_cost_however_long_the_log_is(
    store: SQLSessionStore, filter: Any
) -> None:
    def page(cursor: Cursor) -> None:
        found = read_page(cursor, **filter)
        assert (found.events, found.position) == ([], None)

    await store.append_events(events(1000, run_id="r", timestamp=NOON))
    short = await steps(store, page)
    await store.append_events(events(4000, run_id="r", timestamp=NOON))
    assert abs(await steps(store, page) - short) < 50


@pytest.mark.parametrize(
    "filter",
    [
        {"run_id": [f"absent {number}" for number in range(257)]},
        {"type": ["message_streamed", "run_failed"]},
        {"run_id": ["r", "q"], "type": ["run_failed", "message_streamed"]},
    ],
)
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_search_that_no_index_helps_goes_in_steps_of_the_same_cost(
    store: SQLSessionStore, filter: Any, order: Order
) -> None:
    positions: list[int] = []

    def page(cursor: Cursor) -> None:
        found = read_page(cursor, order=order, **filter)
        assert found.events == []
        positions.append(found.position or 0)

    await store.append_events(events(1000, run_id="r"))
    short = await steps(store, page)
    await store.append_events(events(4000, run_id="r"))
    assert await steps(store, page) == short
    examined = paging.EXAMINED_AT_FIRST + 1
    assert set(positions) == ({examined} if order == "asc" else {1001 - examined, 5001 - examined})
    assert await store.get_events("s", order=order, **filter) == []
    (last,) = await store.append_events(events(1, type="run_failed", run_id="absent 1"))
    if "type" not in filter:
        assert await store.get_events("s", order=order, **filter) == [last]


async def test_of_two_indexes_the_one_that_gets_farther_is_gone_by(store: SQLSessionStore) -> None:
    log = events(5000, run_id="common")
    for number in range(0, 5000, 5):
        log[number] = log[number].replace(type=EventType.RUN_STARTED, run_id="other")
        log[number + 1] = log[number + 1].replace(run_id="rarer")
    log[4999] = log[4999].replace(type=EventType.RUN_STARTED)
    stored = await store.append_events(log)
    for run_id, wanted in (("common", stored[4999:]), ("rarer", [])):

        def first_page(cursor: Cursor, run_id: str = run_id) -> Page:
            return read_page(cursor, run_id=run_id, type="run_started")

        page = await connections(store).read(first_page)
        # 500 of the type, or of the rarer run, reach half through the log, of the common run a sixth.
        assert (page.events, page.position) == ([], 2501 if run_id == "common" else 2502)
        assert await store.get_events("s", run_id=run_id, type="run_started") == wanted
        newest = await store.get_events("s", run_id=run_id, type="run_started", order="desc", limit=1)
        assert newest == wanted


async def test_looking_for_orphans_costs_what_runs_and_not_what_has_ended(store: SQLSessionStore) -> None:
    def look(cursor: Cursor) -> None:
        assert reading.owners(cursor, None) == [None]
        assert len(reading.orphans(cursor, None, [], ("", 0), 10, 1000)[0]) == 1

    await store.save_run(Run.new(session_id="s", id="r").replace(status="running"))
    before = await steps(store, look)
    for index in range(300):
        await store.save_run(Run.new(session_id=f"s{index % 7}", id=str(index)).replace(status="completed"))
    assert await steps(store, look) == before


# -- filters and pages


async def test_every_combination_of_filters_finds_what_a_look_at_each_event_finds(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE_ROWS", 7)
    random = Random(5)
    types = list(EventType)[:6]
    runs = [None, *"abcdefghijklmnopqrstuvwxyz"]
    log = await store.append_events(
        [
            Event.new(
                type=random.choice(types),
                session_id="s",
                run_id=random.choice(runs),
                timestamp=NOON + timedelta(microseconds=random.randrange(5) * 500_000),
            )
            for _ in range(150)
        ]
    )
    await store.append_events(events(20, "other", run_id="a"))
    for _ in range(300):
        order: Order = random.choice(("asc", "desc"))
        some_runs = random.choice((None, [], ["a"], ["a", "b", "c"], [run for run in runs if run]))
        some_types = random.choice((None, [], types[:1], types[:3], list(EventType)))
        filter = EventFilter.checked(
            run_id=some_runs,
            type=some_types,
            since=random.choice((None, NOON, NOON + timedelta(seconds=1))),
            after=random.choice((None, 0, 40, 149, 150, 151)),
            before=random.choice((None, 0, 1, 41, 100, 151)),
            limit=random.choice((None, 1, 6, 7, 8, 30)),
            order=order,
        )
        found, head = await store._pages.events("s", filter)
        assert found == filter.pick(log)
        assert head == 150


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_log_is_read_in_pages_and_each_event_once(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    stored = await store.append_events(events(700))
    monkeypatch.setattr(paging, "PAGE_ROWS", 64)
    read = reading.event_page
    sizes: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        page = read(*args, **options)
        sizes.append(len(page.events))
        return page

    monkeypatch.setattr(reading, "event_page", counted)
    found = await store.get_events("s", order=order)
    assert found == (stored if order == "asc" else stored[::-1])
    assert sizes == [64] * 10 + [60]


async def test_large_events_make_smaller_pages(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await store.append_events(events(300, data={"text": "x" * 10_000}))
    read = reading.event_page
    sizes: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        page = read(*args, **options)
        sizes.append(len(page.events))
        return page

    monkeypatch.setattr(reading, "event_page", counted)
    assert await store.get_events("s") == stored
    assert max(sizes) * 10_000 <= paging.PAGE_BYTES
    assert sum(sizes) == 300
    assert len(sizes) < 10


async def test_one_large_event_among_small_ones_makes_few_small_pages(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = events(1000)
    log[300] = log[300].replace(data={"text": "x" * 600_000})
    stored = await store.append_events(log)
    read = reading.event_page
    sizes: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        page = read(*args, **options)
        sizes.append(len(page.events))
        return page

    monkeypatch.setattr(reading, "event_page", counted)
    assert await store.get_events("s") == stored
    assert sizes == [300, 1, 512, 187]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_no_page_holds_more_bytes_than_it_may_unless_it_is_one_event(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    random = Random(3)
    monkeypatch.setattr(paging, "PAGE_BYTES", 5000)
    log: list[Event] = []
    for _ in range(150):
        data = {"text": "x" * random.choice((0, 10, 1500, 4000, 6000))}
        log += events(1, data=data, run_id=random.choice("ab"))
    stored = await store.append_events(log)
    read = reading.event_page
    pages: list[int] = []

    def noted(*args: Any, **options: Any) -> Any:
        page = read(*args, **options)
        pages.append(len(page.events))
        return page

    monkeypatch.setattr(reading, "event_page", noted)
    for run_ids in (None, ["a"], ["a", "b"]):
        wanted = [event for event in stored if run_ids is None or event.run_id in run_ids]
        if order == "desc":
            wanted.reverse()
        pages.clear()
        assert await store.get_events("s", run_id=run_ids, order=order) == wanted
        expected: list[int] = []
        room = 0
        for event in wanted:
            size = event_row(event)[8]
            room -= size
            if room < 0:
                expected.append(0)
                room = 5000 - size
            expected[-1] += 1
        assert [count for count in pages if count] == expected


async def test_a_log_whose_counter_was_lost_is_read_all_the_same(store: SQLSessionStore) -> None:
    stored = await store.append_events(events(700))
    await connections(store).write(lambda cursor: cursor.execute("DELETE FROM asm_session_sequences"))
    assert await store.get_events("s", limit=600) == stored[:600]


async def test_however_many_go_through_long_logs_there_is_a_connection_for_short_reads(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "EXAMINED", 50)
    await store.append_events(events(3000))
    read = reading.event_page
    under_way = most = done = 0

    def counted(
        cursor: Cursor,
        session_id: str,
        filter: EventFilter,
        limit: int,
        max_bytes: int,
        examined: int,
        has_room: bool,
    ) -> Page:
        nonlocal under_way, most, done
        first = examined == paging.EXAMINED_AT_FIRST
        under_way += not first
        most = max(most, under_way)
        page = read(cursor, session_id, filter, limit, max_bytes, examined, has_room)
        under_way -= not first
        done += not first
        return page

    monkeypatch.setattr(reading, "event_page", counted)
    searches = [
        asyncio.create_task(
            store.get_events("s", type=["message_streamed", "custom"], since=NOON, run_id="x")
        )
        for _ in range(3)
    ]
    searches += [asyncio.create_task(store.get_events("s", type="message_streamed")) for _ in range(3)]
    short_reads = 0
    while not all(search.done() for search in searches):
        assert await store.get_latest_sequence("s") == 3000
        short_reads += 1
    assert [await search for search in searches] == [[]] * 6
    assert (most, done >= 100) == (1, True)
    assert short_reads >= 20


async def test_events_appended_while_a_log_is_read_are_not_in_it(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await store.append_events(events(100))
    monkeypatch.setattr(paging, "PAGE_ROWS", 40)
    read = reading.event_page
    pages = 0

    def slow(*args: Any, **options: Any) -> Any:
        nonlocal pages
        pages += 1
        if pages == 2:
            asyncio.run_coroutine_threadsafe(store.append_events(events(50)), loop).result()
        return read(*args, **options)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(reading, "event_page", slow)
    assert await store.get_events("s") == stored
    assert pages == 3


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_session_deleted_and_made_anew_while_it_is_read_is_read_anew(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    first = await store.append_events(events(100))
    # Its events may even have the same ids.
    anew = [event.replace(data={"of": "the second"}) for event in first[:90]]
    monkeypatch.setattr(paging, "PAGE_ROWS", 40)
    read = reading.event_page
    pages = 0

    async def replace() -> None:
        await store.delete_session("s")
        await store.append_events(anew)

    def slow(*args: Any, **options: Any) -> Any:
        nonlocal pages
        pages += 1
        if pages == 2:
            asyncio.run_coroutine_threadsafe(replace(), loop).result()
        return read(*args, **options)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(reading, "event_page", slow)
    found = await store.get_events("s", order=order)
    assert pages > 2
    assert found == (anew if order == "asc" else anew[::-1])


async def test_sessions_and_runs_are_listed_in_pages(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "LISTED_ROWS", 4)
    ids = [f"{index:02}" for index in range(18)]
    for id in ids:
        await store.save_session(Session.new(id=id, agent_id=f"a{int(id) % 3}", created_at=NOON))
        await store.save_run(
            Run.new(session_id="s", id=id).replace(status="pending" if int(id) % 2 else "failed")
        )
    for limit, offset in product((None, 1, 4, 5, 30), (0, 3, 4, 17, 40)):
        end = None if limit is None else offset + limit
        assert [one.id for one in await store.list_sessions(limit=limit, offset=offset)] == ids[offset:end]
        some = [id for id in ids if int(id) % 3 < 2]
        found = await store.list_sessions(agent_id=["a0", "a1"], status="pending", limit=limit, offset=offset)
        assert [one.id for one in found] == some[offset:end]
        assert [one.id for one in await store.list_runs("s", limit=limit)] == ids[:limit]
        odd = await store.list_runs("s", status=["pending", "running"], limit=limit)
        assert [one.id for one in odd] == ids[1::2][:limit]


@pytest.mark.parametrize("rows", [128, 4])
async def test_a_page_of_a_list_holds_no_more_bytes_than_it_may(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Of sessions, runs and orphans; one that is larger comes alone, and what follows comes too."""
    monkeypatch.setattr(paging, "LISTED_ROWS", rows)
    monkeypatch.setattr(paging, "PAGE_BYTES", 10_000)
    sizes = [100, 4000, 4000, 4000, 30_000, 100, 100, 9800, 9800, 100, 30_000, 30_000, *[100] * 20]
    sessions = [
        Session.new(id=f"{index:02}", agent_id="a", created_at=NOON, metadata={"text": "é" * (size // 2)})
        for index, size in enumerate(sizes)
    ]
    runs = [
        Run.new(session_id="s", id=f"{index:02}", input="é" * (size // 2), created_at=NOON).replace(
            status="running"
        )
        for index, size in enumerate(sizes)
    ]
    for session, run in zip(sessions, runs, strict=True):
        await store.save_session(session)
        await store.save_run(run)
    pages: list[list[int]] = []

    def noting(name: str) -> None:
        question = getattr(reading, name)

        def asked(*args: Any) -> Any:
            page = question(*args)
            pages.append(
                [len(one.metadata["text"] if isinstance(one, Session) else one.input) for one in page[0]]
            )
            return page

        monkeypatch.setattr(reading, name, asked)

    for name in ("list_sessions", "list_runs", "orphans"):
        noting(name)
    for listed, expected in (
        (store.list_sessions, sessions),
        (partial(store.list_sessions, status="pending", agent_id="a"), sessions),
        (partial(store.list_runs, "s"), runs),
        (partial(store.list_runs, "s", status=["running", "failed"]), runs),
        (store.list_orphaned_runs, runs),
        (partial(store.list_orphaned_runs, session_id="s"), runs),
    ):
        for limit in (None, 1, 5, 11):
            pages.clear()
            assert await listed(limit=limit) == expected[:limit]
            assert all(2 * sum(page) <= 10_000 or len(page) == 1 for page in pages)  # two bytes each
            assert len(pages) < 12 if rows == 128 else len(pages) <= 16
        assert max(map(len, pages)) > 1


async def test_what_is_listed_is_right_though_the_next_ones_vanish_between_two_looks(
    store: SQLSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "LISTED_ROWS", 3)
    for index in range(9):
        await store.save_session(Session.new(id=f"{index}", agent_id="a", created_at=NOON))
        await store.save_run(Run.new(session_id=f"{index}", id="r").replace(status="running"))
    measured, looks, loop = reading._measured, 0, asyncio.get_running_loop()

    async def delete() -> None:
        await asyncio.gather(*map(store.delete_session, "345"))

    def slow(*args: Any) -> bool:
        nonlocal looks
        looks += 1
        more = measured(*args)
        if looks == 2:
            asyncio.run_coroutine_threadsafe(delete(), loop).result()
        return more

    monkeypatch.setattr(reading, "_measured", slow)
    assert [one.id for one in await store.list_sessions()] == list("012678")
    for index in range(3, 6):
        await store.save_run(Run.new(session_id=f"{index}", id="r").replace(status="running"))
    looks = 0
    assert [one.session_id for one in await store.list_orphaned_runs()] == list("012678")


# -- beside a writer


async def test_reads_go_on_during_a_long_write_of_another_connection(
    store: SQLSessionStore, file: str
) -> None:
    stored = await store.append_events(events(3))
    connection = await asyncio.to_thread(sqlite3.connect, file, check_same_thread=False)
    await asyncio.to_thread(connection.execute, "DELETE FROM asm_events")
    assert await store.get_events("s") == stored
    await asyncio.to_thread(connection.rollback)
    connection.close()


async def test_a_read_does_not_wait_for_the_writer_and_sees_what_was_acknowledged(
    store: SQLSessionStore,
) -> None:
    gate = threading.Event()
    (stored,) = await store.append_events(events(1))
    busy = connections(store).write(lambda _: gate.wait())
    later = asyncio.create_task(store.append_event(*events(1)))
    assert await store.get_events("s") == [stored]
    assert not later.done()
    gate.set()
    await asyncio.gather(later, busy)


@pytest.mark.parametrize("seed", range(30))
async def test_the_newest_events_are_those_that_are_there_whatever_is_missing_or_miscounted(
    store: SQLSessionStore, file: str, seed: int
) -> None:
    random = Random(seed)
    log = await store.append_events(
        [
            Event.new(
                type="message_streamed",
                session_id="s",
                data={"n": number},
                metadata=random.choice((None, {"trace": number})),
                schema_version=random.choice((1, 1, 2)),
            )
            for number in range(40)
        ]
    )
    gone = set(random.sample(range(1, 41), random.choice((0, 0, 1, 30))))
    for number in gone:
        execute(file, "DELETE FROM asm_events WHERE sequence_number = ?", number)
    counter = random.choice((40, 40, 20, 60, None))
    if counter is None:
        execute(file, "DELETE FROM asm_session_sequences")
    else:
        execute(file, "UPDATE asm_session_sequences SET last_sequence = ?", counter)
    for _ in range(20):
        after = random.choice((None, random.randrange(50)))
        before = random.choice((None, random.randrange(50)))
        limit = random.randrange(1, 45)
        expected = [
            event
            for event in reversed(log)
            if event.sequence_number not in gone
            and (event.sequence_number or 0) > (after or 0)
            and (event.sequence_number or 0) < (100 if before is None else before)
        ][:limit]
        found = await store.get_events("s", after=after, before=before, limit=limit, order="desc")
        assert found == expected


# -- rows that cannot be read


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("type", "of_a_later_release"),
        ("data", "{broken"),
        ("data", "[1]"),
        ("timestamp", "noon"),
        ("metadata", ""),
    ],
)
async def test_an_event_that_cannot_be_read_is_named_and_reads_past_it_go_on(
    store: SQLSessionStore, file: str, column: str, text: str
) -> None:
    stored = await store.append_events(events(5))
    await asyncio.to_thread(
        execute, file, f"UPDATE asm_events SET {column} = ? WHERE sequence_number = 3", text
    )
    with pytest.raises(StoreError, match="event 3 of session s cannot be read") as failed:
        await store.get_events("s")
    assert failed.value.details == {"session_id": "s", "sequence_number": 3}
    assert await store.get_events("s", after=3) == stored[3:]
    assert await store.get_events("s", before=3) == stored[:2]
    assert numbers(await store.append_events(events(1))) == [6]


@pytest.mark.parametrize(
    ("column", "text"),
    [("status", "dreaming"), ("metadata", "{"), ("created_at", "noon"), ("input", "nothing")],
)
async def test_a_run_that_cannot_be_read_is_named_and_the_others_are_found(
    store: SQLSessionStore, file: str, column: str, text: str
) -> None:
    for id in ("bad", "good"):
        await store.save_run(Run.new(session_id="s", id=id))
    await asyncio.to_thread(execute, file, f"UPDATE asm_runs SET {column} = ? WHERE id = 'bad'", text)
    with pytest.raises(StoreError, match="run bad of session s cannot be read"):
        await store.get_run("bad")
    assert (await store.get_run("good")).id == "good"
    with pytest.raises(StoreError, match="run bad of session s cannot be read"):
        await store.list_runs("s")


async def test_a_status_that_is_not_known_is_never_overwritten(store: SQLSessionStore, file: str) -> None:
    session, run = Session.new(id="s", agent_id="a"), Run.new(session_id="s", id="r")
    await store.save_session(session)
    await store.save_run(run)
    await asyncio.to_thread(execute, file, "UPDATE asm_sessions SET status = 'dreaming'")
    await asyncio.to_thread(execute, file, "UPDATE asm_runs SET status = 'dreaming'")
    for write in (store.save_session(session), store.save_run(run), store.enqueue_run(run)):
        with pytest.raises(StoreError, match="dreaming"):
            await write
    with pytest.raises(StoreError, match="session s cannot be read"):
        await store.get_session("s")
    assert await store.claim_run("s") is None
