"""Spans and metrics of real sessions: manager, server, store and adapter together."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

from asm_runtime import EventType, RunStatus, SessionManager, SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate, Script, Stage, emit, fail, finish, say, tokens
from asm_runtime.errors import DrainTimeout, ProviderError, ProviderTimeout, RunCancelled, RunTimeout
from asm_runtime.ports import SessionStore
from asm_runtime.stores import InMemorySessionStore
from tests.telemetry.recorded import Recorded, attributes_of, is_child_of, span_id_of

INVOKE = "invoke_agent tester"


@pytest.fixture
async def store(recorded: Recorded) -> AsyncIterator[SessionStore]:
    async with InMemorySessionStore() as made:
        yield made


def serve(store: SessionStore, adapter: Any, **options: Any) -> SessionServer:
    return SessionServer(store=store, adapter=adapter, session_opts={"agent_id": "tester"}, **options)


def calls_a_model(recorded: Recorded) -> Any:
    """A step in which the adapter traces something of its own."""

    async def step(stage: Stage) -> None:
        with recorded.tracer.start_as_current_span("model call"):
            await stage.context.emit("message_streamed", {"content": "x"})

    return step


async def test_a_submitted_run_lies_in_its_submitters_span_with_the_adapters_work_inside(
    recorded: Recorded, store: SessionStore
) -> None:
    script = [calls_a_model(recorded), finish("done", token_usage={"input_tokens": 3, "output_tokens": 4})]
    async with serve(store, ScriptedAdapter(script)) as server:
        with recorded.tracer.start_as_current_span("request"):
            result = await server.execute_run({"prompt": "hello"}, adapter_opts={"model": "small-1"})
    invoke, execute = recorded.span(INVOKE), recorded.span("asm.run.execute")
    assert is_child_of(invoke, recorded.span("request"))
    assert is_child_of(recorded.span("asm.run.queued"), invoke)
    assert is_child_of(execute, invoke)
    assert is_child_of(recorded.span("model call"), execute)
    assert attributes_of(invoke) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "scripted",
        "gen_ai.agent.id": "tester",
        "gen_ai.agent.name": "tester",
        "gen_ai.conversation.id": server.session_id,
        "gen_ai.request.model": "small-1",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "asm.run.id": result.run_id,
        "asm.session.id": server.session_id,
        "asm.run.status": "completed",
        "asm.run.attempt": 1,
    }
    assert [event.name for event in execute.events] == ["asm.run.first_output"]
    assert attributes_of(execute)["asm.session.in_flight_runs"] == 1


async def test_the_writes_of_a_run_lie_in_its_execution_and_cover_its_log(
    recorded: Recorded, store: SessionStore
) -> None:
    async with serve(store, ScriptedAdapter([tokens(5)])) as server:
        run_id = await server.submit_run({"prompt": "hello"})
        await server.await_run(run_id)
        events = await store.get_events(server.session_id, run_id=run_id)
    writes = recorded.spans("asm.store.append") + recorded.spans("asm.store.flush")
    ranges = sorted(
        (attributes_of(write)["asm.store.first_sequence"], attributes_of(write)["asm.store.last_sequence"])
        for write in writes
    )
    numbers = [number for first, last in ranges for number in range(first, last + 1)]
    assert numbers == [event.sequence_number for event in events]
    assert sum(attributes_of(write)["asm.store.events"] for write in writes) == len(events)
    for write in writes:
        assert is_child_of(write, recorded.span("asm.run.execute"))
    (flush,) = recorded.spans("asm.store.flush")
    assert attributes_of(flush)["asm.store.last_sequence"] == events[-1].sequence_number


async def test_a_run_whose_request_is_over_when_it_starts_is_still_its_child(
    recorded: Recorded, store: SessionStore
) -> None:
    gate = Gate()
    async with serve(store, ScriptedAdapter([gate])) as server:
        first = await server.submit_run({"n": 1})
        with recorded.tracer.start_as_current_span("request"):
            second = await server.submit_run({"n": 2})
        gate.open()
        await server.await_run(second)
        await server.await_run(first)
    runs = {attributes_of(span)["asm.run.id"]: span for span in recorded.spans(INVOKE)}
    assert is_child_of(runs[second], recorded.span("request"))
    assert runs[first].parent is None
    assert runs[first].context is not None
    queued = {attributes_of(span)["asm.run.id"]: span for span in recorded.spans("asm.run.queued")}
    assert is_child_of(queued[second], runs[second])


async def test_a_run_that_another_process_submitted_is_linked_to_its_request(
    recorded: Recorded, store: SessionStore
) -> None:
    elsewhere = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1)))
    manager = SessionManager(store, ScriptedAdapter([]))
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    with trace.use_span(elsewhere):
        run = await manager.start_run(session.id, {"prompt": "hello"})
    with recorded.tracer.start_as_current_span("main"):
        async with SessionServer(store=store, adapter=ScriptedAdapter([]), session_id=session.id) as server:
            await server.await_run(run.id)
    invoke = recorded.span(INVOKE)
    assert invoke.parent is None
    (link,) = invoke.links
    assert (link.context.trace_id, link.context.span_id) == (0xABC, 0xDEF)


async def test_run_once_is_one_trace_with_its_caller(recorded: Recorded, store: SessionStore) -> None:
    manager = SessionManager(store, ScriptedAdapter([calls_a_model(recorded)]))
    with recorded.tracer.start_as_current_span("job"):
        await manager.run_once({"prompt": "hello"}, agent_id="tester")
    assert is_child_of(recorded.span(INVOKE), recorded.span("job"))
    assert len({span.context.trace_id for span in recorded.spans() if span.context is not None}) == 1
    assert recorded.value("asm.run.in_flight") == 0


async def test_a_run_executed_by_a_worker_is_its_child_and_linked_to_the_request(
    recorded: Recorded, store: SessionStore
) -> None:
    manager = SessionManager(store, ScriptedAdapter([]))
    session = await manager.activate_session((await manager.start_session(agent_id="tester")).id)
    with recorded.tracer.start_as_current_span("request"):
        run = await manager.start_run(session.id, {"prompt": "hello"})
    with recorded.tracer.start_as_current_span("worker"):
        await manager.execute_run(run.id)
    invoke = recorded.span(INVOKE)
    assert is_child_of(invoke, recorded.span("worker"))
    assert [link.context.span_id for link in invoke.links] == [span_id_of(recorded.span("request"))]


# -- ends


@pytest.mark.parametrize(
    ("script", "options", "raised", "status", "code"),
    [
        ([fail(KeyError("x"))], {}, ProviderError, RunStatus.FAILED, "provider_error"),
        ([fail(ProviderTimeout("no"))], {}, ProviderTimeout, RunStatus.FAILED, "provider_timeout"),
        ([Gate()], {"run_timeout_ms": 1}, RunTimeout, RunStatus.TIMEOUT, "run_timeout"),
    ],
)
async def test_a_run_that_went_wrong_is_an_error_everywhere(
    recorded: Recorded,
    store: SessionStore,
    script: list[Any],
    options: dict[str, Any],
    raised: type[Exception],
    status: RunStatus,
    code: str,
) -> None:
    async with serve(store, ScriptedAdapter(script)) as server:
        with pytest.raises(raised):
            await server.execute_run({"prompt": "hello"}, **options)
    for name in (INVOKE, "asm.run.execute"):
        assert recorded.span(name).status.status_code is StatusCode.ERROR
        assert attributes_of(recorded.span(name))["error.type"] == code
        assert attributes_of(recorded.span(name))["asm.run.status"] == status
    crashes = [event.name for event in recorded.span("asm.run.execute").events]
    assert crashes == (["exception"] if code == "provider_error" else [])
    assert (
        recorded.histogram(
            "asm.run.duration",
            {"gen_ai.provider.name": "scripted", "asm.run.status": str(status), "error.type": code},
        ).count
        == 1
    )


async def test_cancelled_runs_are_no_errors_in_flight_and_in_the_queue(
    recorded: Recorded, store: SessionStore
) -> None:
    gate = Gate()
    async with serve(store, ScriptedAdapter([gate])) as server:
        in_flight = await server.submit_run({"n": 1})
        await gate.reached()
        queued = await server.submit_run({"n": 2})
        await server.cancel_run(queued)
        await server.cancel_run(in_flight)
        for run_id in (in_flight, queued):
            with pytest.raises(RunCancelled):
                await server.await_run(run_id)
    invokes = recorded.spans(INVOKE)
    assert [attributes_of(span)["asm.run.id"] for span in invokes] == [queued, in_flight]
    for span in invokes:
        assert attributes_of(span)["asm.run.status"] == "cancelled"
        assert span.status.status_code is StatusCode.UNSET
    assert len(recorded.spans("asm.run.execute")) == 1
    assert recorded.value("asm.queue.depth") == 0
    assert recorded.value("asm.run.in_flight") == 0


@pytest.mark.parametrize(("on_orphan", "status"), [("fail", "cancelled"), ("requeue", "pending")])
async def test_runs_of_a_server_that_stops_end_their_spans(
    recorded: Recorded, store: SessionStore, on_orphan: Any, status: str
) -> None:
    gate = Gate()
    async with serve(store, ScriptedAdapter([gate]), on_orphan=on_orphan) as server:
        await server.submit_run({"n": 1})
        await gate.reached()
        await server.submit_run({"n": 2})
    in_flight, queued = sorted(recorded.spans(INVOKE), key=lambda span: span.start_time or 0)
    assert attributes_of(in_flight)["asm.run.status"] == status
    assert attributes_of(queued)["asm.run.status"] == "pending"
    assert recorded.open_spans.names() == []
    assert recorded.value("asm.queue.depth") == 0
    assert recorded.value("asm.run.in_flight") == 0


async def test_a_server_that_crashes_ends_every_span(recorded: Recorded, store: SessionStore) -> None:
    gate = Gate()
    server = await serve(store, ScriptedAdapter([gate])).start()
    await server.submit_run({"n": 1})
    await gate.reached()
    await server.submit_run({"n": 2})
    server.crash(KeyError("x"))
    await server.stop()
    assert recorded.open_spans.names() == []
    assert [event.name for event in recorded.span("asm.run.execute").events] == ["asm.run.abandoned"]
    assert attributes_of(recorded.span("asm.session"))["error.type"] == "KeyError"
    assert recorded.value("asm.queue.depth") == 0
    assert recorded.value("asm.run.in_flight") == 0


async def test_a_server_that_crashes_before_the_first_step_of_a_run_ends_every_span(
    recorded: Recorded, store: SessionStore
) -> None:
    server = await serve(store, ScriptedAdapter([])).start()
    await server.submit_run({"n": 1})
    while not server.status().in_flight_runs:
        await asyncio.sleep(0)
    server.crash(KeyError("x"))
    await server.stop()
    assert recorded.open_spans.names() == []
    assert recorded.value("asm.run.in_flight") == 0


async def test_a_run_whose_session_is_deleted_ends_its_spans(recorded: Recorded, store: SessionStore) -> None:
    gate = Gate()
    async with serve(store, ScriptedAdapter([gate])) as server:
        await server.submit_run({"n": 1})
        await gate.reached()
        await server.submit_run({"n": 2})
        await store.delete_session(server.session_id)
        while recorded.value("asm.run.in_flight"):
            await asyncio.sleep(0)
        assert recorded.span("asm.run.execute").status.status_code is StatusCode.ERROR
    assert recorded.open_spans.names() == []
    assert recorded.value("asm.queue.depth") == 0


async def test_a_provider_that_hangs_does_not_hold_up_the_spans(
    recorded: Recorded, store: SessionStore
) -> None:
    gate = Gate(stubborn=True)
    async with serve(store, ScriptedAdapter([gate]), cancel_grace_ms=1) as server:
        run_id = await server.submit_run({"n": 1})
        await gate.reached()
        await server.cancel_run(run_id)
        assert attributes_of(recorded.span(INVOKE))["asm.run.status"] == "cancelled"
    gate.open()


async def test_a_run_that_another_server_takes_has_spans_on_both_sides(
    recorded: Recorded, store: SessionStore
) -> None:
    gate, elsewhere = Gate(), Gate()
    async with serve(store, ScriptedAdapter([gate])) as accepting:
        await accepting.submit_run({"n": 1})
        await gate.reached()
        run_id = await accepting.submit_run({"n": 2})
        async with SessionServer(
            store=store,
            adapter=ScriptedAdapter([elsewhere, finish(token_usage={"input_tokens": 7})]),
            session_id=accepting.session_id,
            max_concurrent_runs=2,
        ) as executing:
            await elsewhere.reached(run_id=run_id)
            elsewhere.open()
            await executing.await_run(run_id)
    accepted, executed = sorted(
        (span for span in recorded.spans(INVOKE) if attributes_of(span)["asm.run.id"] == run_id),
        key=lambda span: "gen_ai.usage.input_tokens" in attributes_of(span),
    )
    assert attributes_of(accepted)["asm.run.status"] == "pending"
    assert attributes_of(executed)["asm.run.status"] == "completed"
    assert attributes_of(executed)["gen_ai.usage.input_tokens"] == 7
    (queued,) = [
        span for span in recorded.spans("asm.run.queued") if attributes_of(span)["asm.run.id"] == run_id
    ]
    assert is_child_of(queued, executed)
    assert recorded.value("asm.queue.depth") == 0


async def test_a_run_that_is_submitted_again_has_one_trace(recorded: Recorded, store: SessionStore) -> None:
    gate = Gate()
    async with serve(store, ScriptedAdapter([gate])) as server:
        await server.submit_run({"n": 0})
        await gate.reached()
        for _ in range(3):
            await server.submit_run({"n": 1}, run_id="run_mine")
        gate.open()
        await server.await_run("run_mine")
        await server.submit_run({"n": 1}, run_id="run_mine")
    assert len(recorded.spans(INVOKE)) == 2
    assert len(recorded.spans("asm.run.queued")) == 2


async def test_every_attempt_of_a_requeued_run_has_its_own_spans(
    recorded: Recorded, store: SessionStore
) -> None:
    gate = Gate()
    async with serve(store, ScriptedAdapter([gate]), on_orphan="requeue") as server:
        run_id = await server.submit_run({"n": 1})
        await gate.reached()
    gate.open()
    async with SessionServer(
        store=store, adapter=ScriptedAdapter([gate]), session_id=server.session_id
    ) as successor:
        await successor.await_run(run_id)
    first, second = recorded.spans(INVOKE)
    assert attributes_of(first)["asm.run.status"] == "pending"
    assert attributes_of(second)["asm.run.status"] == "completed"
    assert attributes_of(second)["asm.run.attempt"] == 2


# -- tools


async def test_tool_calls_are_spans_also_when_the_run_ends_with_them(
    recorded: Recorded, store: SessionStore
) -> None:
    script = [
        emit(EventType.TOOL_CALL_STARTED, {"tool_call_id": "1", "tool_name": "search"}),
        emit(EventType.TOOL_CALL_STARTED, {"tool_call_id": "2", "tool_name": "read"}),
        emit(EventType.TOOL_CALL_FAILED, {"tool_call_id": "2", "tool_name": "read"}),
        emit(EventType.TOOL_CALL_STARTED, {"tool_call_id": "3", "tool_name": "write"}),
        emit(EventType.TOOL_CALL_COMPLETED, {"tool_call_id": "1", "tool_name": "search"}),
    ]
    async with serve(store, ScriptedAdapter(script)) as server:
        await server.execute_run({"prompt": "hello"})
    execute = recorded.span("asm.run.execute")
    for name in ("search", "read", "write"):
        assert is_child_of(recorded.span(f"execute_tool {name}"), execute)
    assert recorded.span("execute_tool search").status.status_code is StatusCode.UNSET
    assert recorded.span("execute_tool read").status.status_code is StatusCode.ERROR
    assert "asm.tool.unfinished" not in attributes_of(recorded.span("execute_tool search"))
    assert attributes_of(recorded.span("execute_tool write"))["asm.tool.unfinished"] is True


# -- streams and waiting leave no context behind


async def test_a_stream_that_is_left_by_break_leaves_the_callers_span_current(
    recorded: Recorded, store: SessionStore
) -> None:
    async with serve(store, ScriptedAdapter([tokens(20)])) as server:
        with recorded.tracer.start_as_current_span("request") as request:
            run_id = await server.submit_run({"prompt": "hello"})
            async with server.subscribe(run_id=run_id) as events:
                async for _ in events:
                    assert trace.get_current_span() is request
                    break
            assert trace.get_current_span() is request
            stream = server.manager.stream_session_events(server.session_id)
            async for _ in stream:
                assert trace.get_current_span() is request
                break
            assert trace.get_current_span() is request
            await server.await_run(run_id)
        assert not trace.get_current_span().get_span_context().is_valid
    gc.collect()  # a generator that was left is closed in another context


async def test_callers_that_are_cancelled_leave_no_span_open_and_none_current(
    recorded: Recorded, store: SessionStore
) -> None:
    gate = Gate()
    async with serve(store, ScriptedAdapter([gate])) as server:
        run_id = await server.submit_run({"prompt": "hello"})
        await gate.reached()

        async def reads() -> None:
            async with server.subscribe(after=1_000) as events:
                async for _ in events:
                    raise AssertionError

        waits = [
            asyncio.ensure_future(work)
            for work in (server.await_run(run_id), server.drain(), reads(), server.cancel_run("run_unknown"))
        ]
        for _ in range(5):
            await asyncio.sleep(0)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        assert not trace.get_current_span().get_span_context().is_valid
        assert recorded.span("asm.drain").status.status_code is StatusCode.UNSET
    assert recorded.open_spans.names() == []


async def test_the_adapters_span_is_not_current_for_those_who_are_called_back(
    recorded: Recorded, store: SessionStore
) -> None:
    seen: list[bool] = []

    def callback(_: object) -> None:
        seen.append(trace.get_current_span().get_span_context().is_valid)

    async with serve(store, ScriptedAdapter([say("hello")])) as server:
        await server.execute_run({"prompt": "hello"}, event_callback=callback)
    assert seen
    assert not any(seen)


# -- sessions, drains, metrics


async def test_a_session_span_lasts_as_long_as_its_server(recorded: Recorded, store: SessionStore) -> None:
    async with serve(store, ScriptedAdapter([])) as server:
        await server.execute_run({"prompt": "hello"})
        assert recorded.spans("asm.session") == []
    session = recorded.span("asm.session")
    assert attributes_of(session)["asm.session.id"] == server.session_id
    assert session.status.status_code is StatusCode.UNSET


async def test_a_drain_that_takes_too_long_is_an_error(recorded: Recorded, store: SessionStore) -> None:
    gate = Gate()
    async with serve(store, ScriptedAdapter([gate])) as server:
        run_id = await server.submit_run({"prompt": "hello"})
        await gate.reached()
        with recorded.tracer.start_as_current_span("shutdown"), pytest.raises(DrainTimeout):
            await server.drain(timeout_ms=1)
        gate.open()
        await server.await_run(run_id)
        await server.drain()
    late, calm = recorded.spans("asm.drain")
    assert is_child_of(late, recorded.span("shutdown"))
    assert late.status.status_code is StatusCode.ERROR
    assert calm.status.status_code is StatusCode.UNSET


async def test_the_levels_follow_runs_and_waiters(recorded: Recorded, store: SessionStore) -> None:
    gate = Gate()
    async with serve(store, ScriptedAdapter([gate]), max_concurrent_runs=2) as server:
        runs = [await server.submit_run({"n": n}) for n in range(5)]
        await gate.reached(2)
        waiter = asyncio.ensure_future(
            store.get_events(server.session_id, type="policy_violation", wait_timeout_ms=60_000)
        )
        before = recorded.value("asm.store.waiters")
        while recorded.value("asm.store.waiters") == before:
            await asyncio.sleep(0)
        assert recorded.value("asm.queue.depth") == 3
        assert recorded.value("asm.run.in_flight") == 2
        waiter.cancel()
        gate.open()
        for run_id in runs:
            await server.await_run(run_id)
        assert recorded.value("asm.queue.depth") == 0
        assert recorded.value("asm.run.in_flight") == 0
    await store.stop()
    assert recorded.value("asm.store.waiters") == 0


async def test_the_metrics_agree_with_the_log(recorded: Recorded, store: SessionStore) -> None:
    usage = {"input_tokens": 3, "output_tokens": 4}
    script: Script = [tokens(50), finish("done", token_usage=usage, model="small-1")]
    async with serve(store, ScriptedAdapter(script), max_concurrent_runs=3) as server:
        runs = [await server.submit_run({"n": n}) for n in range(10)]
        for run_id in runs:
            await server.await_run(run_id)
        events = await store.get_events(server.session_id)
    assert recorded.value("asm.store.appended_events") == len(events)
    assert recorded.histogram("asm.store.commit.events").sum == len(events)
    assert recorded.histogram("asm.queue.wait").count == 10
    done = {"gen_ai.provider.name": "scripted", "asm.run.status": "completed"}
    assert recorded.histogram("asm.run.duration", done).count == 10
    for kind, count in (("input", 30), ("output", 40)):
        told = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "scripted",
            "gen_ai.response.model": "small-1",
            "gen_ai.token.type": kind,
        }
        assert recorded.histogram("gen_ai.client.token.usage", told).sum == count


async def test_an_event_that_comes_too_late_is_counted(recorded: Recorded, store: SessionStore) -> None:
    stages: list[Stage] = []

    async def keep(stage: Stage) -> None:
        stages.append(stage)

    async with serve(store, ScriptedAdapter([keep])) as server:
        await server.execute_run({"prompt": "hello"})
        with pytest.raises(Exception, match="no more events"):
            await stages[0].context.emit("message_streamed", {"content": "late"})
    assert recorded.value("asm.run.late_events") == 1


async def test_a_slow_subscription_tells_its_lag(recorded: Recorded, store: SessionStore) -> None:
    async with serve(store, ScriptedAdapter([tokens(100)])) as server, server.subscribe(buffer=4) as events:
        first = await anext(events)
        await server.execute_run({"prompt": "hello"})
        seen = [first.sequence_number]
        async for event in events:
            seen.append(event.sequence_number)
            if event.is_terminal:
                break
    assert seen == list(range(1, len(seen) + 1))
    assert recorded.histogram("asm.subscription.lag").count >= 1


async def test_no_metric_of_a_real_session_names_an_id(recorded: Recorded, store: SessionStore) -> None:
    async with serve(store, ScriptedAdapter([tokens(5)])) as server:
        run_id = await server.submit_run({"prompt": "hello"})
        await server.await_run(run_id)
    metrics = recorded.metrics()
    assert len(metrics) >= 7
    for points in metrics.values():
        for point in points:
            told = {str(value) for value in (point.attributes or {}).values()}
            assert told.isdisjoint({run_id, server.session_id, "tester"})
