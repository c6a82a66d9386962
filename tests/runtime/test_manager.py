"""The rules of sessions and runs, and runs that are executed in their caller's task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from asm_runtime import Event, Run, RunStatus, Session, SessionManager, SessionStatus
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, emit, fail, finish, say, tokens
from asm_runtime.errors import (
    AsmError,
    CapabilityMissing,
    Conflict,
    InvalidTransition,
    ProviderError,
    ProviderRateLimited,
    RunCancelled,
    RunFailed,
    RunNotFound,
    RunTimeout,
    SessionNotFound,
    ValidationError,
)
from asm_runtime.ports import Capability, ExecutionResult, RunContext, SessionStore
from asm_runtime.testing import JumpingClock
from tests.runtime.support import terminal_events, types_of, until, until_stored


class Interposed:
    """A store in which `then` happens once, right after a read of one kind."""

    def __init__(self, store: SessionStore, call: str) -> None:
        self._store = store
        self._call = call
        self.then: Callable[[], Awaitable[None]] | None = None

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name != self._call:
            return method

        async def read(*arguments: Any, **options: Any) -> Any:
            answer = await method(*arguments, **options)
            then, self.then = self.then, None
            if then is not None:
                await then()
            return answer

        return read


async def active_session(manager: SessionManager, **options: Any) -> Session:
    session = await manager.start_session(agent_id="tester", **options)
    return await manager.activate_session(session.id)


async def test_a_session_is_created_together_with_its_event(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await manager.start_session(
        agent_id="ci", id="s1", metadata={"a": 1}, context={"b": 2}, tags=["x"]
    )
    assert session.status == SessionStatus.PENDING
    assert await manager.get_session("s1") == session
    (created,) = await manager.get_session_events("s1")
    assert created.type == "session_created"
    assert created.provider == "scripted"
    assert created.metadata["provider"] == "scripted"


async def test_a_session_id_is_taken_once(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    await manager.start_session(agent_id="ci", id="s1")
    with pytest.raises(Conflict):
        await manager.start_session(agent_id="ci", id="s1")
    assert await types_of(store, "s1") == ["session_created"]


async def test_every_step_of_a_session_returns_the_record_and_is_logged(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    paused = await manager.pause_session(session.id)
    assert paused.status == SessionStatus.PAUSED
    resumed = await manager.resume_session(session.id)
    assert resumed.status == SessionStatus.ACTIVE
    completed = await manager.complete_session(session.id)
    assert completed == await store.get_session(session.id)
    assert await types_of(store, session.id) == [
        "session_created",
        "session_started",
        "session_paused",
        "session_resumed",
        "session_completed",
    ]


async def test_steps_that_the_table_does_not_allow_are_refused(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await manager.start_session(agent_id="ci")
    for step in (manager.pause_session, manager.resume_session, manager.complete_session):
        with pytest.raises(InvalidTransition) as refused:
            await step(session.id)
        assert refused.value.from_status == "pending"
    await manager.activate_session(session.id)
    with pytest.raises(InvalidTransition):
        await manager.activate_session(session.id)
    await manager.pause_session(session.id)
    with pytest.raises(InvalidTransition):
        await manager.activate_session(session.id)
    assert len(await store.get_events(session.id)) == 3


async def test_of_two_callers_that_end_a_session_one_wins(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    ends = await asyncio.gather(
        manager.complete_session(session.id),
        manager.cancel_session(session.id),
        manager.fail_session(session.id, RunFailed("no", code="mine")),
        return_exceptions=True,
    )
    losers = [end for end in ends if isinstance(end, InvalidTransition)]
    assert len(losers) == 2
    assert len(await types_of(store, session.id)) == 3


@pytest.mark.parametrize("step", ["pause", "complete", "cancel", "fail"])
async def test_what_others_change_between_look_and_write_of_a_step_is_kept(
    store: SessionStore, step: str
) -> None:
    between: Any = Interposed(store, "get_session")
    manager = SessionManager(between, ScriptedAdapter())
    session = await active_session(manager, metadata={"a": 1})

    async def name_it() -> None:
        current = await store.get_session(session.id)
        await store.save_session(current.replace(metadata=current.metadata | {"title": "mine"}, tags=["x"]))

    between.then = name_it
    arguments = (session.id, "x") if step == "fail" else (session.id,)
    changed = await getattr(manager, f"{step}_session")(*arguments)
    assert changed.metadata == {"a": 1, "title": "mine", "provider": "scripted"}
    assert await store.get_session(session.id) == changed
    assert len(await store.get_events(session.id)) == 3


async def test_no_change_of_a_session_is_lost_whoever_steps_meanwhile(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    stepped = 0

    async def put(key: str) -> None:
        while True:
            seen = await store.get_session(session.id)
            new = seen.replace(metadata=seen.metadata | {key: 1})
            try:
                await store.flush(ExecutionResult(session=new), expected_session=seen)
            except Conflict:
                continue
            return

    async def step() -> None:
        nonlocal stepped
        for change in (manager.pause_session, manager.resume_session) * 3:
            try:
                await change(session.id)
                stepped += 1
            except InvalidTransition:
                pass

    await asyncio.gather(*(put(f"k{number}") for number in range(10)), step(), step())
    last = await store.get_session(session.id)
    assert {f"k{number}" for number in range(10)} <= last.metadata.keys()
    assert len(await types_of(store, session.id)) == 2 + stepped


async def test_cancelling_a_run_that_was_tried_meanwhile_keeps_its_attempt(store: SessionStore) -> None:
    between: Any = Interposed(store, "get_run")
    manager = SessionManager(between, ScriptedAdapter())
    session = await active_session(manager)
    run = await manager.start_run(session.id, {})

    async def try_it() -> None:
        claimed = await store.claim_run(session.id)
        assert claimed is not None
        pending = claimed.with_status("pending")
        await store.flush(ExecutionResult(run=pending.replace(metadata={"seen": True})), fence=claimed.fence)

    between.then = try_it
    cancelled = await manager.cancel_run(run.id)
    assert (cancelled.attempt, cancelled.metadata) == (1, {"seen": True})
    assert await store.get_run(run.id) == cancelled
    assert len(await terminal_events(store, session.id, run.id)) == 1


async def test_a_failed_session_logs_the_error(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    await manager.fail_session(session.id, ProviderRateLimited("slow down"))
    event = (await store.get_events(session.id))[-1]
    assert event.data == {"error_code": "provider_rate_limited", "error_message": "slow down"}


async def test_a_session_with_open_runs_does_not_complete(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    await manager.start_run(session.id, {})
    with pytest.raises(Conflict):
        await manager.complete_session(session.id)


@pytest.mark.parametrize("end", ["cancel_session", "fail_session"])
async def test_the_end_of_a_session_ends_its_open_runs(store: SessionStore, end: str) -> None:
    gate = Gate()
    manager = SessionManager(store, ScriptedAdapter([gate]))
    session = await active_session(manager)
    running = await manager.start_run(session.id, {})
    waiting = await manager.start_run(session.id, {})
    executing = asyncio.create_task(manager.execute_run(running.id))
    await gate.reached()
    if end == "cancel_session":
        await manager.cancel_session(session.id)
    else:
        await manager.fail_session(session.id, RunFailed("over", code="mine"))
    for run in await manager.get_session_runs(session.id):
        assert run.status == RunStatus.CANCELLED
        assert len(await terminal_events(store, session.id, run.id)) == 1
    with pytest.raises(RunCancelled):
        await executing
    assert waiting.id not in manager.adapter.started  # type: ignore[attr-defined]
    log = await types_of(store, session.id)
    ends = {"session_cancelled", "session_failed"}
    assert ends & set(log[: log.index("run_cancelled")])  # first the session's, so that nothing starts


async def test_a_terminal_session_takes_no_runs(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    await manager.complete_session(session.id)
    with pytest.raises(InvalidTransition):
        await manager.start_run(session.id, {})


async def test_runs_of_a_session_that_is_not_active_are_accepted_but_do_not_start(
    store: SessionStore,
) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await manager.start_session(agent_id="ci")
    run = await manager.start_run(session.id, {})
    with pytest.raises(InvalidTransition):
        await manager.execute_run(run.id)
    assert (await store.get_run(run.id)).status == RunStatus.PENDING


async def test_required_capabilities_must_be_there_and_enabled(store: SessionStore) -> None:
    adapter = ScriptedAdapter(
        capabilities=[Capability(name="b", type="tool"), Capability(name="v", type="vision", enabled=False)]
    )
    manager = SessionManager(store, adapter)
    session = await active_session(manager)
    with pytest.raises(CapabilityMissing) as refused:
        await manager.start_run(session.id, {}, required_capabilities=["tool", "vision"])
    assert refused.value.details["missing"] == ["vision"]
    assert await store.list_runs(session.id) == []
    run = await manager.start_run(
        session.id, {}, required_capabilities=["tool"], optional_capabilities=["vision"]
    )
    assert run.metadata["missing_capabilities"] == ["vision"]


async def test_run_once_makes_a_session_and_completes_it(store: SessionStore) -> None:
    adapter = ScriptedAdapter(
        [
            tokens(2),
            finish(
                {"content": "ok"}, stop_reason="end", model="m", cost_usd=0.5, token_usage={"input_tokens": 1}
            ),
        ]
    )
    manager = SessionManager(store, adapter)
    result = await manager.run_once({"prompt": "hi"}, metadata={"user": "u", "provider": "other"})
    session = await store.get_session(result.session_id)
    assert session.status == SessionStatus.COMPLETED
    assert session.agent_id == "scripted"
    assert session.metadata == {"user": "u", "provider": "scripted"}
    assert await types_of(store, session.id) == [
        "session_created",
        "session_started",
        "message_sent",
        "run_started",
        "message_streamed",
        "message_streamed",
        "run_completed",
        "session_completed",
    ]
    assert result.output == {"content": "ok"}
    assert (result.stop_reason, result.cost_usd) == ("end", 0.5)
    assert result.provider_metadata["model"] == "m"
    assert result.last_sequence_number == 7
    run = await store.get_run(result.run_id)
    assert (run.provider, run.attempt, run.token_usage) == ("scripted", 1, {"input_tokens": 1})


async def test_run_once_fails_its_session_and_names_both_ids(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter([fail(ProviderRateLimited("slow"))]))
    with pytest.raises(ProviderRateLimited) as failed:
        await manager.run_once({"prompt": "hi"})
    assert failed.value.session_id is not None
    run = await store.get_run(failed.value.run_id or "", session_id=failed.value.session_id)
    assert run.status == RunStatus.FAILED
    assert run.error == failed.value.to_dict()
    assert (await store.get_session(run.session_id)).status == SessionStatus.FAILED
    assert len(await terminal_events(store, run.session_id, run.id)) == 1


async def test_an_exception_of_the_adapter_becomes_a_provider_error(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter([fail(KeyError("x"))]))
    with pytest.raises(ProviderError) as failed:
        await manager.run_once({})
    assert failed.value.details["exception"] == "KeyError"
    assert isinstance(failed.value.__cause__, KeyError)


async def test_an_adapter_that_cancels_itself_has_failed(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter([fail(asyncio.CancelledError())]))
    with pytest.raises(ProviderError) as failed:
        await manager.run_once({})
    assert failed.value.code == "provider_error"
    run = await store.get_run(failed.value.run_id or "")
    assert run.status == RunStatus.FAILED


@pytest.mark.parametrize("output", [float("nan"), {1: 2}, object(), "\ud800"])
async def test_an_output_that_cannot_be_stored_fails_the_run(store: SessionStore, output: Any) -> None:
    manager = SessionManager(store, ScriptedAdapter([finish({"x": output})]))
    with pytest.raises(ValidationError) as failed:
        await manager.run_once({})
    run = await store.get_run(failed.value.run_id or "")
    assert run.status == RunStatus.FAILED
    assert run.error is not None
    assert run.error["code"] == "validation_error"


async def test_what_an_adapter_returns_must_be_a_result(store: SessionStore) -> None:
    class Wrong(ScriptedAdapter):
        async def execute(self, run: Run, session: Session, context: RunContext) -> Any:
            return {"output": 1}

    with pytest.raises(ProviderError, match="not a ProviderResult"):
        await SessionManager(store, Wrong()).run_once({})


async def test_details_that_json_cannot_carry_do_not_keep_a_run_from_its_end(store: SessionStore) -> None:
    error = ProviderError("odd", details={"x": object(), "y": float("nan")})
    with pytest.raises(ProviderError) as failed:
        await SessionManager(store, ScriptedAdapter([fail(error)])).run_once({})
    assert (await store.get_run(failed.value.run_id or "")).status == RunStatus.FAILED


async def test_a_run_is_executed_once(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    run = await manager.start_run(session.id, {"prompt": "x"})
    await manager.execute_run(run.id, session_id=session.id)
    with pytest.raises(Conflict):
        await manager.execute_run(run.id)
    with pytest.raises(RunNotFound):
        await manager.execute_run("run_unknown")
    assert (await types_of(store, session.id)).count("message_sent") == 1


async def test_the_messages_of_the_input_are_logged_before_the_run_starts(store: SessionStore) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi", "x": 1}]
    manager = SessionManager(store, ScriptedAdapter([]))
    result = await manager.run_once({"messages": messages})
    sent = await store.get_events(result.session_id, type="message_sent")
    assert [event.data for event in sent] == messages
    started = await store.get_events(result.session_id, type="run_started")
    assert started[0].data == {"attempt": 1, "provider": "scripted"}
    assert started[0].sequence_number == 5


async def test_events_keep_what_the_adapter_says_of_them(store: SessionStore) -> None:
    when = JumpingClock().now()
    script = [
        emit("custom", {"name": "x"}, timestamp=when, metadata={"k": "v"}, id="mine"),
        emit("custom", {"name": "x"}, id="mine"),
    ]
    manager = SessionManager(store, ScriptedAdapter(script))
    session = await active_session(manager, metadata={"correlation_id": "c-1"})
    run = await manager.start_run(session.id, {})
    await manager.execute_run(run.id)
    (event,) = await store.get_events(session.id, type="custom")
    assert event.timestamp == when
    assert event.metadata == {"k": "v", "provider": "scripted"}
    assert (event.id, event.provider, event.run_id, event.correlation_id) == (
        "mine",
        "scripted",
        run.id,
        "c-1",
    )


async def test_the_adapters_own_start_and_end_are_facts_not_events(store: SessionStore) -> None:
    script = [
        emit("run_started", {"session": "abc"}),
        emit("run_completed", {"cost": 1}),
        say("still here"),
    ]
    result = await SessionManager(store, ScriptedAdapter(script)).run_once({})
    log = await types_of(store, result.session_id, result.run_id)
    assert log == ["run_started", "message_received", "run_completed"]
    assert result.provider_metadata["session"] == "abc"
    assert result.provider_metadata["cost"] == 1


async def test_an_event_that_cannot_be_stored_is_the_adapters_error(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter([emit("no_such_type", {})]))
    with pytest.raises(ValidationError):
        await manager.run_once({})


async def test_options_are_stored_with_the_run_and_reach_the_adapter(store: SessionStore) -> None:
    adapter = ScriptedAdapter()
    manager = SessionManager(store, adapter)
    result = await manager.run_once({"prompt": "x"}, adapter_opts={"model": "m1"}, run_timeout_ms=60_000)
    run = await store.get_run(result.run_id)
    assert run.metadata["options"] == {"adapter_opts": {"model": "m1"}, "run_timeout_ms": 60_000}
    assert adapter.contexts[0].adapter_opts == {"model": "m1"}
    assert adapter.contexts[0].deadline is not None
    (started,) = await store.get_events(result.session_id, type="run_started")
    assert started.data["model"] == "m1"


async def test_options_given_at_execution_are_laid_over_and_stored(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    run = await manager.start_run(session.id, {"prompt": "x"})
    await manager.execute_run(run.id, adapter_opts={"a": 1})
    assert (await store.get_run(run.id)).metadata["options"] == {"adapter_opts": {"a": 1}}


async def test_unknown_options_are_type_errors_and_bad_values_validation_errors(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter(adapter_opts=["model"]))
    with pytest.raises(TypeError):
        await manager.run_once({}, no_such_option=1)  # type: ignore[call-arg]
    many: list[Any] = [
        {"run_timeout_ms": 0},
        {"idle_timeout_ms": "1"},
        {"adapter_opts": {"x": object()}},
        {"continuation": "native"},
        {"continuation_opts": {"limit": 3}},
        {"event_callback": 3},
    ]
    for bad in many:
        with pytest.raises(ValidationError):
            await manager.run_once({}, **bad)
    with pytest.raises(ValidationError):
        await manager.run_once({}, adapter_opts={"unknown": 1})


async def test_the_callback_is_given_every_stored_event_in_order(store: SessionStore) -> None:
    seen: list[Event] = []

    async def callback(event: Event) -> None:
        seen.append(event)
        raise RuntimeError("is logged")

    manager = SessionManager(store, ScriptedAdapter([tokens(50)]))
    result = await manager.run_once({"prompt": "x"}, event_callback=callback)
    assert seen == await store.get_events(result.session_id, run_id=result.run_id)


async def test_a_run_that_takes_too_long_is_timed_out_and_nothing_follows(store: SessionStore) -> None:
    clock, gate = JumpingClock(), Gate()
    adapter = ScriptedAdapter([say("a"), gate, say("b")])
    manager = SessionManager(store, adapter, clock=clock)
    task = asyncio.create_task(manager.run_once({}, run_timeout_ms=1000))
    await gate.reached()
    await clock.advance_ms(1000)
    with pytest.raises(RunTimeout) as late:
        await task
    run = await store.get_run(late.value.run_id or "")
    assert run.status == RunStatus.TIMEOUT
    assert adapter.cancelled == [run.id]
    assert (await types_of(store, run.session_id, run.id))[-1] == "run_timeout"


async def test_a_silent_run_is_timed_out_but_one_that_reports_is_not(store: SessionStore) -> None:
    clock = JumpingClock()
    steps = [Gate() for _ in range(5)]
    adapter = ScriptedAdapter([step for gate in steps for step in (gate, say("still here"))] + [Gate()])
    manager = SessionManager(store, adapter, clock=clock)
    task = asyncio.create_task(manager.run_once({}, idle_timeout_ms=100))
    (run_id,) = await steps[0].reached()
    run = await store.get_run(run_id)

    async def said(count: int) -> bool:
        return len(await store.get_events(run.session_id, type="message_received")) == count

    for number, gate in enumerate(steps, 1):
        await clock.advance_ms(80)
        gate.open()
        await until_stored(partial(said, number))
    assert not task.done()
    await clock.advance_ms(100)
    with pytest.raises(RunTimeout) as late:
        await task
    assert late.value.details["kind"] == "idle"
    assert (await store.get_run(run_id)).status == RunStatus.TIMEOUT


async def test_cancelling_the_caller_cancels_the_run_first(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    manager = SessionManager(store, adapter)
    session = await active_session(manager)
    run = await manager.start_run(session.id, {})
    task = asyncio.create_task(manager.execute_run(run.id))
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await store.get_run(run.id)).status == RunStatus.CANCELLED
    (end,) = await terminal_events(store, session.id, run.id)
    assert end.data["reason"] == "caller_cancelled"
    assert adapter.cancelled == [run.id]


async def test_a_cancelled_run_once_cancels_its_session(store: SessionStore) -> None:
    gate = Gate()
    manager = SessionManager(store, ScriptedAdapter([gate]))
    task = asyncio.create_task(manager.run_once({}))
    (run_id,) = await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    run = await store.get_run(run_id)
    assert run.status == RunStatus.CANCELLED
    assert (await store.get_session(run.session_id)).status == SessionStatus.CANCELLED
    assert (await types_of(store, run.session_id))[-2:] == ["run_cancelled", "session_cancelled"]


@pytest.mark.parametrize("turns", [*range(1, 40), 60, 90])
async def test_run_once_cancelled_at_any_await_leaves_nothing_open(store: SessionStore, turns: int) -> None:
    manager = SessionManager(store, ScriptedAdapter([tokens(3)]))
    task = asyncio.create_task(manager.run_once({"prompt": "x"}))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    for session in await store.list_sessions():
        assert session.status.is_terminal
        for run in await store.list_runs(session.id):
            assert run.status.is_terminal
            assert len(await terminal_events(store, session.id, run.id)) == 1


async def test_cancel_run_ends_a_pending_run_for_good(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    run = await manager.start_run(session.id, {})
    cancelled = await manager.cancel_run(run.id)
    assert cancelled.status == RunStatus.CANCELLED
    assert await manager.cancel_run(run.id) == cancelled
    assert len(await terminal_events(store, session.id, run.id)) == 1
    with pytest.raises(RunNotFound):
        await manager.cancel_run("run_unknown")


async def test_cancel_run_ends_a_run_that_another_task_executes(store: SessionStore) -> None:
    gate = Gate()
    adapter = ScriptedAdapter([gate])
    manager = SessionManager(store, adapter)
    session = await active_session(manager)
    run = await manager.start_run(session.id, {})
    task = asyncio.create_task(manager.execute_run(run.id))
    await gate.reached()
    await manager.cancel_run(run.id)
    with pytest.raises(RunCancelled):
        await task
    assert adapter.cancelled == [run.id]
    assert len(await terminal_events(store, session.id, run.id)) == 1


async def test_a_session_failed_meanwhile_stays_failed(store: SessionStore) -> None:
    gate = Gate()
    manager = SessionManager(store, ScriptedAdapter([gate]))
    session = await active_session(manager)
    run = await manager.start_run(session.id, {})
    task = asyncio.create_task(manager.execute_run(run.id))
    await gate.reached()
    await manager.fail_session(session.id, RunFailed("over", code="mine"))
    gate.open()
    with pytest.raises(AsmError):
        await task
    assert (await store.get_session(session.id)).status == SessionStatus.FAILED


async def test_two_parallel_runs_lose_no_session_metadata(store: SessionStore) -> None:
    gate = Gate()
    manager = SessionManager(store, ScriptedAdapter([gate, finish({}, provider_session_id="p")]))
    session = await active_session(manager, metadata={"a": 1})
    runs = [await manager.start_run(session.id, {}) for _ in range(2)]
    tasks = [asyncio.create_task(manager.execute_run(run.id)) for run in runs]
    await gate.reached(2)
    current = await store.get_session(session.id)
    await store.save_session(current.replace(metadata=current.metadata | {"b": 2}))
    gate.open()
    results = await asyncio.gather(*tasks)
    metadata = (await store.get_session(session.id)).metadata
    assert (metadata["a"], metadata["b"]) == (1, 2)
    assert {result.provider_metadata["provider_session_id"] for result in results} == {"p"}


async def test_a_continued_run_is_given_the_messages_so_far(store: SessionStore) -> None:
    adapter = ScriptedAdapter()
    manager = SessionManager(store, adapter)
    session = await active_session(manager)
    for prompt in ("one two", "three"):
        run = await manager.start_run(session.id, {"prompt": prompt})
        await manager.execute_run(run.id)
    run = await manager.start_run(session.id, {"prompt": "last"})
    await manager.execute_run(run.id, continuation=True)
    contents = [(message["role"], message["content"]) for message in adapter.contexts[-1].history]
    assert contents == [
        ("user", "one two"),
        ("assistant", "one two"),
        ("user", "three"),
        ("assistant", "three"),
    ]
    run = await manager.start_run(session.id, {"prompt": "more"})
    await manager.execute_run(run.id, continuation="replay", continuation_opts={"max_messages": 1})
    assert [message["content"] for message in adapter.contexts[-1].history] == ["last"]
    assert adapter.contexts[0].history == []


async def test_the_stream_pages_polls_and_ends(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    await store.append_events(
        [Event.new(type="custom", session_id=session.id, data={"n": n}) for n in range(1, 251)]
    )
    numbers = [
        event.sequence_number
        async for event in manager.stream_session_events(
            session.id, limit=100, until=lambda event: event.sequence_number == 252
        )
    ]
    assert numbers == list(range(1, 253))


async def test_the_stream_waits_for_what_comes(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    stream = manager.stream_session_events(session.id, after=2, wait_timeout_ms=60_000)
    following = asyncio.ensure_future(anext(stream))
    for _ in range(20):
        await asyncio.sleep(0)
    await store.append_event(Event.new(type="custom", session_id=session.id))
    assert (await following).sequence_number == 3
    await stream.aclose()  # type: ignore[attr-defined]


async def test_the_stream_ends_when_its_session_is_deleted(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    session = await active_session(manager)
    numbers: list[int | None] = []

    async def read() -> None:
        async for event in manager.stream_session_events(session.id, wait_timeout_ms=60_000):
            numbers.append(event.sequence_number)

    reading = asyncio.create_task(read())
    await until(lambda: len(numbers) == 2)
    await store.delete_session(session.id)
    await reading
    assert numbers == [1, 2]


async def test_a_store_that_ignores_the_wait_is_not_polled_without_pause() -> None:
    class Impatient:
        calls = 0

        async def get_events(self, *_: Any, **__: Any) -> list[Event]:
            Impatient.calls += 1
            return []

        async def get_latest_sequence(self, _: str) -> int:
            return 0

        async def get_session(self, session_id: str) -> Session:
            raise SessionNotFound(session_id)

    clock = JumpingClock()
    manager = SessionManager(Impatient(), ScriptedAdapter(), clock=clock)  # type: ignore[arg-type]
    stream = manager.stream_session_events("s", wait_timeout_ms=10_000, poll_interval_ms=250)
    reading = asyncio.ensure_future(anext(stream))
    await clock.advance_ms(2_500)
    assert Impatient.calls <= 11
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_an_unknown_session_is_not_found(store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter())
    with pytest.raises(SessionNotFound):
        await manager.get_session("nope")
    with pytest.raises(SessionNotFound):
        await manager.start_run("nope", {})
    with pytest.raises(SessionNotFound):
        await manager.activate_session("nope")


async def test_a_claim_that_was_lost_elsewhere_writes_nothing(store: SessionStore) -> None:
    gate = Gate()
    manager = SessionManager(store, ScriptedAdapter([gate, say("late")]))
    session = await active_session(manager)
    run = await manager.start_run(session.id, {})
    task = asyncio.create_task(manager.execute_run(run.id))
    await gate.reached()
    claimed = await store.get_run(run.id)
    await store.release_run(claimed.fence)
    await store.flush(ExecutionResult(run=claimed.with_status("pending")), fence=claimed.fence)
    again = await store.claim_run(session.id, run_id=run.id)
    assert again is not None
    gate.open()
    with pytest.raises(AsmError) as lost:
        await task
    assert lost.value.code == "lease_lost"
    stored = await store.get_run(run.id)
    assert (stored.status, stored.attempt) == (RunStatus.RUNNING, 2)
    assert "message_received" not in await types_of(store, session.id)


def test_run_options_of_a_run_ignore_what_this_release_does_not_know() -> None:
    from asm_runtime.runtime.run_options import RunOptions

    run = Run.new(session_id="s", metadata={"options": {"future": 1, "run_timeout_ms": 5}})
    assert RunOptions.of(run) == RunOptions(run_timeout_ms=5)
