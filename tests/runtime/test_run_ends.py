"""How a run ends when its store fails or refuses, and when its adapter returns or raises odd things."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from asm_runtime import Event, Run, RunStatus, SessionManager, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, emit, fail, finish, say, tokens
from asm_runtime.errors import (
    ActorStopped,
    AsmError,
    LeaseLost,
    ProviderError,
    ProviderRateLimited,
    RunCancelled,
    RunFailed,
    RunNotFound,
    RunTimeout,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
)
from asm_runtime.payload import encode
from asm_runtime.ports import ExecutionResult, ProviderResult, SessionStore
from asm_runtime.stores import InMemorySessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.faulty import FaultyStore
from tests.runtime.support import open_server, terminal_events, until, until_stored


async def contents(store: SessionStore, session_id: str, run_id: str) -> list[Any]:
    """What a run said, and how it ended."""
    events = await store.get_events(session_id, run_id=run_id)
    return [
        str(event.type) if event.is_terminal else event.data["content"]
        for event in events
        if event.is_terminal or "content" in event.data
    ]


def poisoned(call: Any, *_: Any, **__: Any) -> StoreError | None:
    """Refuses a write that carries the content `poison`."""
    events = call.events if isinstance(call, ExecutionResult) else call
    return StoreError("too large") if any(e.data.get("content") == "poison" for e in events) else None


def terminal_write(result: ExecutionResult, **_: Any) -> StoreError | None:
    """Refuses every end of a run."""
    ends = result.run is not None and result.run.status.is_terminal
    return StoreError("packet too large") if ends else None


# -- what was emitted is stored before the end, or with it


@pytest.mark.parametrize("moment", ["before the append", "during the append", "between two tries"])
async def test_a_run_that_ends_during_an_outage_keeps_its_events(store: SessionStore, moment: str) -> None:
    faulty, clock, gate, last = FaultyStore(store), JumpingClock(), Gate(), Gate()
    words = [say(f"m{number}") for number in range(5)]
    async with await open_server(faulty, ScriptedAdapter([gate, *words, last]), clock=clock) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        before = faulty.calls["append_events"]
        if moment == "during the append":
            faulty.hanging.add("append_events")
        faulty.failing |= {"append_events": StoreUnavailable("busy"), "flush": StoreUnavailable("busy")}
        gate.open()
        await last.reached()
        if moment != "before the append":
            await until(lambda: faulty.calls["append_events"] > before)
        if moment == "between two tries":
            await clock.until_timers(1)
        last.open()
        for _ in range(50):
            await asyncio.sleep(0)
        if moment == "during the append":
            faulty.go_on()  # the append fails now
        await until(lambda: faulty.calls["flush"])
        assert not (await store.get_run(run_id)).status.is_terminal
        faulty.heal()
        await clock.advance_ms(2_000)
        assert (await server.await_run(run_id)).status == RunStatus.COMPLETED
        said = await contents(store, server.session_id, run_id)
        assert said == ["m0", "m1", "m2", "m3", "m4", "run_completed"]


@pytest.mark.parametrize("end", ["returns", "goes on"])
async def test_a_run_with_an_event_that_is_refused_fails_and_keeps_the_others(
    store: SessionStore, end: str
) -> None:
    faulty, gate, last = FaultyStore(store), Gate(), Gate()
    words = [say("a"), say("b"), say("poison"), say("c")]
    script: list[Any] = [gate, *words, *([] if end == "returns" else [last])]
    async with await open_server(faulty, ScriptedAdapter(script)) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        faulty.refusing |= {"append_events": poisoned, "flush": poisoned}
        gate.open()
        with pytest.raises(StoreError, match="too large"):
            await server.await_run(run_id)
        assert (await store.get_run(run_id)).status == RunStatus.FAILED
        assert await contents(store, server.session_id, run_id) == ["a", "b", "c", "run_failed"]


async def test_events_that_are_refused_only_with_the_end_fail_the_run(store: SessionStore) -> None:
    """The provider returns while a batch is on its way; the rest goes with the end."""
    faulty, gate, last = FaultyStore(store), Gate(), Gate()
    script: list[Any] = [gate, say("a"), last, say("b"), say("poison"), say("c")]
    async with await open_server(faulty, ScriptedAdapter(script)) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        before = faulty.calls["append_events"]
        faulty.hanging.add("append_events")
        faulty.refusing |= {"append_events": poisoned, "flush": poisoned}
        gate.open()
        await last.reached()
        await until(lambda: faulty.calls["append_events"] > before)
        last.open()
        for _ in range(50):
            await asyncio.sleep(0)
        faulty.go_on()
        with pytest.raises(StoreError, match="too large"):
            await server.await_run(run_id)
        assert (await store.get_run(run_id)).status == RunStatus.FAILED
        assert await contents(store, server.session_id, run_id) == ["a", "b", "c", "run_failed"]


async def test_a_store_that_refuses_every_event_is_not_asked_for_each(store: SessionStore) -> None:
    faulty, gate = FaultyStore(store), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate, tokens(1000)])) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        before = faulty.calls["append_events"]
        faulty.failing["append_events"] = StoreError("disk on fire")
        gate.open()
        with pytest.raises(StoreError, match="disk on fire"):
            await server.await_run(run_id)
        assert faulty.calls["append_events"] - before < 50


async def test_a_write_that_was_stored_though_it_failed_is_not_stored_twice(store: SessionStore) -> None:
    """The commit was done, its answer lost."""
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    append, lost = store.append_events, ["first"]

    async def answer_lost(*args: Any, **options: Any) -> Any:
        stored = await append(*args, **options)
        if gate.waiting or not lost:
            return stored
        lost.pop()
        raise StoreUnavailable("connection lost")

    seen: list[Event] = []
    adapter = ScriptedAdapter([gate, say("a"), say("b")])
    async with await open_server(faulty, adapter, clock=clock) as server:
        run_id = await server.submit_run({}, event_callback=seen.append)
        await gate.reached()
        vars(faulty)["append_events"] = answer_lost
        gate.open()
        waiting = asyncio.create_task(server.await_run(run_id))
        while not waiting.done():
            await clock.advance_ms(100)
        await waiting
        assert await contents(store, server.session_id, run_id) == ["a", "b", "run_completed"]
        log = await store.get_events(server.session_id, run_id=run_id)
        await until(lambda: len(seen) >= len(log))
        assert seen == log


async def test_a_run_queued_again_at_the_stop_keeps_its_events(store: SessionStore) -> None:
    faulty, gate, last = FaultyStore(store), Gate(), Gate()
    script: list[Any] = [gate, say("a"), say("poison"), say("b"), last]
    server = await open_server(faulty, ScriptedAdapter(script), on_orphan="requeue")
    run_id = await server.submit_run({})
    await gate.reached()
    before = faulty.calls["append_events"]
    faulty.hanging.add("append_events")
    faulty.refusing |= {"append_events": poisoned, "flush": poisoned}
    gate.open()
    await last.reached()
    await until(lambda: faulty.calls["append_events"] > before)
    stopping = asyncio.create_task(server.stop())
    for _ in range(50):
        await asyncio.sleep(0)
    faulty.go_on()
    await stopping
    run = await store.get_run(run_id)
    assert (run.status, run.owner) == (RunStatus.PENDING, None)
    assert await contents(store, server.session_id, run_id) == ["a", "b"]


async def test_a_cancelled_run_with_an_event_that_is_refused_has_failed(store: SessionStore) -> None:
    """What was reported and cannot be stored fails the run, however it was to end."""
    faulty, gate, last = FaultyStore(store), Gate(), Gate()
    async with await open_server(
        faulty, ScriptedAdapter([gate, say("a"), last, say("poison"), last])
    ) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        before = faulty.calls["append_events"]
        faulty.hanging.add("append_events")
        faulty.refusing |= {"append_events": poisoned, "flush": poisoned}
        gate.open()
        await until(lambda: faulty.calls["append_events"] > before)
        last.open()
        last.close()
        await last.reached(2)
        cancelling = asyncio.create_task(server.cancel_run(run_id))
        for _ in range(50):
            await asyncio.sleep(0)
        faulty.go_on()
        await cancelling
        with pytest.raises(StoreError, match="too large"):
            await server.await_run(run_id)
        assert await contents(store, server.session_id, run_id) == ["a", "run_failed"]


async def test_a_run_that_is_cancelled_at_its_provider_is_cancelled(store: SessionStore) -> None:
    async with await open_server(store, ScriptedAdapter([fail(RunCancelled("elsewhere"))])) as server:
        run_id = await server.submit_run({})
        with pytest.raises(RunCancelled, match="elsewhere"):
            await server.await_run(run_id)
        assert (await store.get_run(run_id)).status == RunStatus.CANCELLED


async def test_a_run_that_failed_keeps_what_it_was_told_of_its_tokens(store: SessionStore) -> None:
    script = [
        emit("token_usage_updated", {"input_tokens": 1}),
        emit("token_usage_updated", {"input_tokens": 5, "output_tokens": 7}),
        emit("run_started", {"session": "abc"}),
        fail(ProviderError("no")),
    ]
    async with await open_server(store, ScriptedAdapter(script)) as server:
        run_id = await server.submit_run({})
        with pytest.raises(ProviderError):
            await server.await_run(run_id)
        run = await store.get_run(run_id)
        assert run.token_usage == {"input_tokens": 5, "output_tokens": 7}
        assert run.provider_metadata == {"session": "abc"}


async def test_a_result_without_usage_keeps_what_was_reported(store: SessionStore) -> None:
    script: list[Any] = [emit("token_usage_updated", {"input_tokens": 1}), finish("x")]
    result = await SessionManager(store, ScriptedAdapter(script)).run_once({})
    assert result.token_usage == {"input_tokens": 1}


async def test_a_run_that_ended_is_not_released(store: SessionStore) -> None:
    faulty = FaultyStore(store)
    async with await open_server(
        faulty, ScriptedAdapter(scripts=[[], [fail(ProviderError("no"))]])
    ) as server:
        await server.execute_run({})
        with pytest.raises(ProviderError):
            await server.execute_run({})
    assert faulty.calls["release_run"] == 0


async def test_a_run_that_is_deleted_while_it_runs_is_not_found(store: SessionStore) -> None:
    gate = Gate()
    manager = SessionManager(store, ScriptedAdapter([gate, say("late")]))
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    run = await manager.start_run(session.id, {})
    executing = asyncio.create_task(manager.execute_run(run.id))
    await gate.reached()
    await store.delete_session(session.id)
    gate.open()
    with pytest.raises(RunNotFound) as gone:
        await executing
    assert (gone.value.session_id, gone.value.run_id) == (session.id, run.id)


async def test_a_run_of_no_session_fails(store: SessionStore) -> None:
    """A run needs no row of its session to be accepted; its adapter is given one."""
    run = await store.enqueue_run(Run.new(session_id="nowhere", input={}))
    with pytest.raises(SessionNotFound):
        await SessionManager(store, ScriptedAdapter()).execute_run(run.id)
    stored = await store.get_run(run.id)
    assert (stored.status, stored.error and stored.error["code"]) == ("failed", "session_not_found")


async def test_nothing_is_stored_of_an_attempt_that_was_given_up(store: SessionStore) -> None:
    """Its fence may still hold: it is an orphan that nobody has settled."""
    gate, refused = Gate(stubborn=True), list[BaseException]()

    async def late(stage: Any) -> None:
        try:
            await stage.context.emit("message_received", {"content": "late"})
        except LeaseLost as error:
            refused.append(error)

    faulty: Any = FaultyStore(store)
    manager = SessionManager(faulty, ScriptedAdapter([say("early"), gate, late]), cancel_grace_ms=0)
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    run = await manager.start_run(session.id, {})
    seen: list[Event] = []
    executing = asyncio.create_task(manager.execute_run(run.id, event_callback=seen.append))
    await gate.reached()
    for task in asyncio.all_tasks():
        if getattr(task.get_coro(), "__qualname__", "") == "RunExecution.run":
            task.cancel()
    await asyncio.wait([executing])
    gate.open()
    await until(lambda: refused)
    assert (await store.get_run(run.id)).status == RunStatus.RUNNING
    assert "late" not in await contents(store, session.id, run.id)


async def test_a_message_of_the_input_is_logged_once_a_run_however_often_it_is_tried(
    store: SessionStore,
) -> None:
    gate = Gate()
    adapter = ScriptedAdapter(scripts=[[gate], []])
    first = await open_server(store, adapter, on_orphan="requeue")
    run_id = await first.submit_run({"messages": [{"content": "a"}, {"content": "a"}]})
    await gate.reached()
    await first.stop()
    async with SessionServer(store=store, adapter=adapter, session_id=first.session_id) as second:
        await second.await_run(run_id)
    log = [str(event.type) for event in await store.get_events(first.session_id, run_id=run_id)]
    assert log == ["message_sent", "message_sent", "run_started", "run_started", "run_completed"]


async def test_options_given_at_execution_are_stored_while_the_run_runs(store: SessionStore) -> None:
    gate = Gate()
    manager = SessionManager(store, ScriptedAdapter([gate]))
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    run = await manager.start_run(session.id, {})
    executing = asyncio.create_task(manager.execute_run(run.id, adapter_opts={"a": 1}))
    await gate.reached()
    assert (await store.get_run(run.id)).metadata["options"] == {"adapter_opts": {"a": 1}}
    gate.open()
    await executing


async def test_what_waits_to_be_stored_is_bounded_in_bytes(store: SessionStore) -> None:
    faulty, gate = FaultyStore(store), Gate()
    big = "x" * 3_000_000
    taken: list[int] = []

    async def talk(stage: Any) -> None:
        for number in range(12):
            await stage.context.emit("message_received", {"content": big})
            taken.append(number)

    async with await open_server(faulty, ScriptedAdapter([gate, talk])) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        faulty.hanging.add("append_events")
        gate.open()
        for _ in range(100):
            await asyncio.sleep(0)
        assert 3 <= len(taken) <= 6  # one buffer on its way, one waiting
        faulty.heal()
        await server.await_run(run_id)
        assert len(await store.get_events(server.session_id, type="message_received")) == 12


# -- an end that is not written is no outcome


async def test_an_end_that_is_refused_is_no_outcome(store: SessionStore) -> None:
    faulty, gate = FaultyStore(store), Gate()
    adapter = ScriptedAdapter(scripts=[[gate], []])
    async with await open_server(faulty, adapter) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        faulty.refusing["flush"] = terminal_write
        waiting = asyncio.create_task(server.await_run(run_id))
        gate.open()
        await until_stored(store.list_orphaned_runs)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not waiting.done()
        assert (await store.get_run(run_id)).status == RunStatus.RUNNING
        faulty.heal()
        await server.submit_run({})  # the server looks, and settles what it finds
        with pytest.raises(RunFailed) as settled:
            await waiting
        assert settled.value.code == "orphaned"
        assert (await store.get_run(run_id)).error == settled.value.to_dict()


async def test_who_executes_a_run_itself_is_told_that_its_end_could_not_be_written(
    store: SessionStore,
) -> None:
    faulty: Any = FaultyStore(store)
    manager = SessionManager(faulty, ScriptedAdapter([fail(ProviderRateLimited("slow"))]))
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    run = await manager.start_run(session.id, {})
    faulty.refusing["flush"] = terminal_write
    with pytest.raises(StoreError, match="could not be written") as told:
        await manager.execute_run(run.id)
    assert (told.value.session_id, told.value.run_id) == (session.id, run.id)
    assert isinstance(told.value.__cause__, StoreError)
    assert [orphan.id for orphan in await store.list_orphaned_runs()] == [run.id]


async def test_an_end_written_elsewhere_is_read_when_the_store_answers(store: SessionStore) -> None:
    faulty, clock, gate = FaultyStore(store), JumpingClock(), Gate()
    async with await open_server(faulty, ScriptedAdapter([gate]), clock=clock) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        await server.manager.cancel_run(run_id)
        faulty.failing |= {"get_run": StoreUnavailable("busy"), "get_events": StoreUnavailable("busy")}
        gate.open()
        await clock.until_timers(1)
        assert server.status().in_flight_runs == [run_id]
        faulty.heal()
        await clock.advance_ms(2_000)
        with pytest.raises(RunCancelled):
            await server.await_run(run_id)


# -- the last-resort end always fits


def larger_than(limit: int) -> Callable[..., StoreError | None]:
    def judge(result: Any, **_: Any) -> StoreError | None:
        return StoreError("row too big") if len(encode(result)) > limit else None

    return judge


@pytest.mark.parametrize(
    "script",
    [
        [finish("x" * 200_000)],
        [finish(1, metadata={"x": "x" * 200_000})],
        [emit("run_started", {"x": "x" * 200_000}), finish(1)],
        [fail(ProviderError("x" * 200_000))],
        [fail(ProviderError("x", details={"x": "x" * 200_000}))],
        [fail(RunFailed("\N{SNOWMAN}" * 100_000, code="x" * 100_000))],
        [fail(RunCancelled("x", details={"reason": "x" * 200_000}))],
    ],
)
async def test_an_end_that_is_too_large_is_written_without_what_made_it_so(
    store: SessionStore, script: Any
) -> None:
    faulty = FaultyStore(store)
    faulty.refusing["flush"] = larger_than(10_000)
    async with await open_server(faulty, ScriptedAdapter(script)) as server:
        run_id = await server.submit_run({})
        with pytest.raises(AsmError) as ended:
            await server.await_run(run_id)
        run = await store.get_run(run_id)
        assert run.status in (RunStatus.FAILED, RunStatus.CANCELLED)
        assert run.error is not None
        assert (run.error["code"], run.error["message"]) == (ended.value.code, ended.value.message)
        assert ended.value.code in ("storage_error", "run_cancelled")
        assert len(await terminal_events(store, server.session_id, run_id)) == 1
        assert len(encode(run)) < 10_000


async def test_a_cancelled_run_whose_facts_are_refused_is_cancelled(store: SessionStore) -> None:
    faulty, gate = FaultyStore(store), Gate()
    faulty.refusing["flush"] = larger_than(10_000)
    script: list[Any] = [emit("run_started", {"x": "x" * 200_000}), gate]
    async with await open_server(faulty, ScriptedAdapter(script)) as server:
        run_id = await server.submit_run({})
        await gate.reached()
        await server.cancel_run(run_id)
        with pytest.raises(RunCancelled) as ended:
            await server.await_run(run_id)
        assert ended.value.details["reason"] == "cancelled"
        assert (await store.get_run(run_id)).status == RunStatus.CANCELLED


def with_field(**fields: Any) -> AsmError:
    error = ProviderError("odd")
    for name, value in fields.items():
        setattr(error, name, value)
    return error


class Bare(AsmError):
    """Its constructor forgot the one of its base."""

    def __init__(self) -> None:
        Exception.__init__(self, "bare")


class Broken(AsmError):
    def to_dict(self) -> dict[str, Any]:
        raise RuntimeError("no dict")


class Closed(AsmError):
    session_id = property(lambda self: None)  # pyright: ignore[reportAssignmentType]  # cannot be set


class Slippery(dict[str, Any]):
    """A dict that nobody can read."""

    def items(self) -> Any:
        raise RuntimeError("no items")


ODD_ERRORS: list[Callable[[], BaseException]] = [
    Bare,
    lambda: Broken("x"),
    lambda: Closed("x"),
    lambda: RunFailed("x", code="bad\ud800"),
    lambda: RunFailed("x", code=""),
    lambda: RunFailed("x", code="a\nb"),
    lambda: RunFailed("x", code="x" * 10_000),
    lambda: with_field(code=None),
    lambda: with_field(code=7),
    lambda: with_field(details=None),
    lambda: with_field(details=Slippery(x=1)),
    lambda: with_field(message=None),
    lambda: with_field(message=b"x"),
    lambda: with_field(message="\ud800"),
    lambda: with_field(retryable=object()),
    lambda: ProviderError("", details={"x": {1: object()}}),
]


@pytest.mark.parametrize("number", range(len(ODD_ERRORS)))
async def test_an_odd_error_of_an_adapter_ends_its_run(store: SessionStore, number: int) -> None:
    error = ODD_ERRORS[number]()
    async with await open_server(store, ScriptedAdapter([fail(error)])) as server:
        run_id = await server.submit_run({})
        with pytest.raises(AsmError) as raised:
            await server.await_run(run_id)
        run = await store.get_run(run_id)
        assert run.status == RunStatus.FAILED
        assert run.error is not None
        assert run.error["code"] == raised.value.code
        assert type(AsmError.from_dict(run.error)) is type(raised.value)
        (end,) = await terminal_events(store, server.session_id, run_id)
        assert end.data["error_code"] == run.error["code"]
        assert raised.value.run_id == run_id


@pytest.mark.parametrize(
    "fields",
    [
        {"output": Slippery(x=1)},
        {"output": {"x": object()}},
        {"metadata": None, "token_usage": 3},
        {"metadata": Slippery(x=1)},
        {"stop_reason": object()},
        {"model": b"m"},
        {"cost_usd": "much"},
        {"cost_usd": float("nan")},
        {"cost_usd": 10**400},
    ],
)
async def test_an_odd_result_of_an_adapter_ends_its_run(store: SessionStore, fields: Any) -> None:
    script: list[Any] = [say("a"), ProviderResult(**fields)]
    async with await open_server(store, ScriptedAdapter(script)) as server:
        run_id = await server.submit_run({})
        with pytest.raises(AsmError):
            await server.await_run(run_id)
        assert await contents(store, server.session_id, run_id) == ["a", "run_failed"]


@pytest.mark.parametrize("name", [None, "", 7, "x" * 2_000])
async def test_an_adapter_whose_name_goes_bad_ends_its_runs(store: SessionStore, name: Any) -> None:
    adapter = ScriptedAdapter()
    manager = SessionManager(store, adapter)
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    run = await manager.start_run(session.id, {})
    adapter.name = name
    with pytest.raises(AsmError):
        await manager.execute_run(run.id)
    assert (await store.get_run(run.id)).status == RunStatus.FAILED


@pytest.mark.parametrize("correlation_id", ["", 7, "x" * 2_000, "a\0b"])
async def test_a_correlation_id_that_no_event_can_have_is_none(
    store: SessionStore, correlation_id: Any
) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    result = await manager.run_once({"prompt": "x"}, metadata={"correlation_id": correlation_id})
    log = await store.get_events(result.session_id)
    assert {event.correlation_id for event in log} == {None}


# -- foreign exceptions of a store


def once(error: BaseException) -> Callable[..., BaseException | None]:
    left = [error]
    return lambda *_, **__: left.pop() if left else None


@pytest.mark.parametrize("error", [OSError("no disk"), asyncio.CancelledError(), StoreUnavailable("busy")])
@pytest.mark.parametrize("call", ["get_session", "append_events", "flush"])
async def test_whatever_a_store_raises_once_the_run_ends(
    store: SessionStore, call: str, error: BaseException
) -> None:
    faulty: Any = FaultyStore(store)
    clock, gate = JumpingClock(), Gate()
    manager = SessionManager(faulty, ScriptedAdapter([gate, say("a")]), clock=clock)
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    run = await manager.start_run(session.id, {})
    if call == "get_session":
        faulty.refusing[call] = once(error)
    executing = asyncio.create_task(manager.execute_run(run.id))
    if call != "get_session":
        await gate.reached()
        faulty.refusing[call] = once(error)
    gate.open()
    await faulty.time_passes(clock, executing)
    refused = isinstance(error, OSError)
    assert isinstance(executing.exception(), StoreError) == refused
    ended = await store.get_run(run.id)
    assert ended.status == (RunStatus.FAILED if refused else RunStatus.COMPLETED)
    assert len(await terminal_events(store, session.id, run.id)) == 1


@pytest.mark.parametrize("call", ["append_events", "flush"])
async def test_a_store_that_stops_under_a_run_ends_the_call(call: str) -> None:
    async with InMemorySessionStore() as store:
        gate = Gate()
        manager = SessionManager(
            store, ScriptedAdapter([gate, *([say("a")] if call == "append_events" else [])])
        )
        session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
        run = await manager.start_run(session.id, {})
        executing = asyncio.create_task(manager.execute_run(run.id))
        await gate.reached()
    gate.open()
    with pytest.raises(ActorStopped):
        await executing


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (RunStatus.CANCELLED, RunCancelled),
        (RunStatus.TIMEOUT, RunTimeout),
        (RunStatus.FAILED, RunFailed),
    ],
)
@pytest.mark.parametrize("error", [None, {}])
async def test_a_run_without_an_error_raises_the_class_of_its_status(
    store: SessionStore, status: RunStatus, kind: type[AsmError], error: Any
) -> None:
    async with await open_server(store, ScriptedAdapter()) as server:
        run = Run.new(session_id=server.session_id, input={}).with_status("running").with_status(status)
        await store.save_run(run.replace(error=error))
        with pytest.raises(kind) as raised:
            await server.await_run(run.id)
        assert type(raised.value) is kind
        assert raised.value.code == kind.code
        assert (raised.value.session_id, raised.value.run_id) == (server.session_id, run.id)
