"""Groups on a PostgreSQL server: what they cost, who waits for whom, and connections that break."""

from __future__ import annotations

import asyncio
from itertools import chain
from random import Random

from asm_runtime.records import Event, Run
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.postgres.database import PostgresDatabase
from asm_runtime.testing.store_case import events, numbers
from tests.stores.sql.postgres.conftest import Ask

OTHERS = "datname = current_database() AND pid != pg_backend_pid()"


async def test_a_group_takes_as_many_round_trips_however_many_sessions_it_spans(
    store: SQLSessionStore,
) -> None:
    await store.claim_run("s")  # now it is known to be alive
    database = store._database
    assert isinstance(database, PostgresDatabase)
    connection = database.writer._connection
    assert connection is not None
    asked: list[str] = []

    async def group(count: int) -> list[str]:
        names = [f"{count}-{index}" for index in range(count)]
        for name in names:
            await store.enqueue_run(Run.new(session_id=name, id="r"))
        asked.clear()
        with connection.query_logger(lambda query: asked.append(query.query)):
            writes = [(store.append_events(events(3, name)), store.claim_run(name)) for name in names]
            await asyncio.gather(*chain.from_iterable(writes))
        return list(asked)

    one = await group(1)
    assert one.count("COMMIT") == 1
    assert await group(20) == one


async def test_batches_that_span_sessions_in_different_orders_do_not_wait_for_each_other_for_ever(
    store: SQLSessionStore, second: SQLSessionStore
) -> None:
    random = Random(7)
    names = [str(index) for index in range(12)]

    async def write(node: SQLSessionStore) -> None:
        for _ in range(15):
            shuffled = random.sample(names, len(names))
            await node.append_events([Event.new(type="custom", session_id=name) for name in shuffled])

    await asyncio.gather(*(write(node) for node in (store, second, store, second)))
    for name in names:
        assert numbers(await store.get_events(name)) == list(range(1, 61))


async def test_a_store_whose_connections_were_cut_while_it_was_idle_goes_on(
    store: SQLSessionStore, ask: Ask
) -> None:
    await store.enqueue_run(Run.new(session_id="s", id="r"))
    claimed = await store.claim_run("s")
    assert await ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")
    assert await store.get_run("r") == claimed
    assert numbers(await store.append_events(events(2))) == [1, 2]


async def test_who_waits_is_woken_after_the_bell_has_lost_its_connection(
    store: SQLSessionStore, second: SQLSessionStore, ask: Ask
) -> None:
    parked = asyncio.create_task(store.get_events("s", wait_timeout_ms=60_000))
    while not store._readers.sessions():
        await ask("SELECT 1")
    await ask(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS}")
    stored = await second.append_event_with_sequence(events(1)[0])
    assert await parked == [stored]


async def test_an_event_with_an_escaped_nul_and_every_character_comes_back(store: SQLSessionStore) -> None:
    data = {"nul": "a\0b", "all": "".join(map(chr, [*range(0x20), 0x7F, 0x2028, 0xFFFF, 0x1F600]))}
    stored = await store.append_event_with_sequence(Event.new(type="custom", session_id="s", data=data))
    (found,) = await store.get_events("s")
    assert found == stored
    assert found.data == data


async def test_a_counter_that_somebody_lost_does_not_stop_the_log(store: SQLSessionStore, ask: Ask) -> None:
    await store.append_events(events(3))
    await ask("DELETE FROM asm_session_sequences")
    assert numbers(await store.append_events(events(2))) == [4, 5]
