"""What the hooks make of what they are told, as spans."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from asm_runtime import Event, EventType, Run, RunStatus, Session
from asm_runtime.errors import DrainTimeout, LeaseLost
from asm_runtime.observer import observer, set_observer
from asm_runtime.payload import JsonObject
from asm_runtime.telemetry import conventions, install
from asm_runtime.telemetry.spans import MAX_OPEN_TOOL_CALLS
from tests.telemetry.recorded import Recorded, attributes_of, is_child_of, span_id_of

SESSION = Session.new(agent_id="reviewer", id="ses_1")


def submitted(*, metadata: JsonObject | None = None, created_at: datetime | None = None) -> Run:
    """A run as a store accepted it, with its submitter's trace context."""
    return Run.new(
        session_id="ses_1",
        id="run_1",
        provider="scripted",
        metadata={"trace_context": observer().trace_context(), **(metadata or {})},
        created_at=created_at,
    )


def claimed(run: Run, *, attempt: int = 1) -> Run:
    return run.replace(attempt=attempt, owner="node_1").with_status(RunStatus.RUNNING)


def ended(run: Run, status: RunStatus = RunStatus.COMPLETED, **fields: object) -> Run:
    return run.with_status(status).replace(**fields)


def event(type: EventType, data: JsonObject | None = None, *, at: datetime | None = None) -> Event:
    return Event.new(type=type, session_id="ses_1", run_id="run_1", data=data, timestamp=at)


def test_a_run_is_one_invoke_agent_with_its_wait_and_its_execution_inside(recorded: Recorded) -> None:
    run = submitted(metadata={"options": {"adapter_opts": {"model": "small-1"}}})
    told = observer().run(run, "reviewer")
    told.queued(2)
    told.started(running := claimed(run), SESSION)
    told.ended(
        ended(
            running,
            token_usage={
                "input_tokens": 12,
                "output_tokens": 34,
                "cache_read_tokens": 5,
                "cache_creation_tokens": 0,
                "reasoning_tokens": 20,
                "usage_status": "complete",
            },
            provider_metadata={"model": "small-1-2025", "stop_reason": "end_turn"},
        )
    )

    invoke = recorded.span("invoke_agent reviewer")
    assert invoke.kind is SpanKind.INTERNAL
    assert attributes_of(invoke) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "scripted",
        "gen_ai.agent.id": "reviewer",
        "gen_ai.agent.name": "reviewer",
        "gen_ai.conversation.id": "ses_1",
        "gen_ai.request.model": "small-1",
        "gen_ai.response.model": "small-1-2025",
        "gen_ai.response.finish_reasons": ("end_turn",),
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 34,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 20,
        "asm.run.id": "run_1",
        "asm.session.id": "ses_1",
        "asm.run.status": "completed",
        "asm.run.attempt": 1,
    }
    assert invoke.status.status_code is StatusCode.UNSET
    queued, execute = recorded.span("asm.run.queued"), recorded.span("asm.run.execute")
    assert is_child_of(queued, invoke)
    assert is_child_of(execute, invoke)
    assert attributes_of(queued)["asm.queue.depth"] == 2
    assert attributes_of(queued)["asm.queue.wait"] >= 0
    assert attributes_of(execute)["asm.run.attempt"] == 1
    assert len(recorded.spans()) == 3


def test_the_spans_carry_the_scope_and_the_version_of_the_conventions(recorded: Recorded) -> None:
    observer().run(submitted(), "reviewer").abandoned()
    scope = recorded.span("invoke_agent reviewer").instrumentation_scope
    assert scope is not None
    assert scope.name == "asm_runtime"
    assert scope.version == conventions.SCOPE_VERSION
    assert scope.schema_url == f"https://opentelemetry.io/schemas/{conventions.SEMCONV_VERSION}"


def test_the_run_begins_when_it_was_submitted_though_its_span_is_made_later(recorded: Recorded) -> None:
    a_minute_ago = datetime.now(UTC) - timedelta(minutes=1)
    run = submitted(created_at=a_minute_ago)
    told = observer().run(run, "reviewer")
    told.started(running := claimed(run), SESSION)
    told.ended(ended(running))
    begin = int(a_minute_ago.timestamp() * 1_000_000) * 1000
    queued = recorded.span("asm.run.queued")
    assert recorded.span("invoke_agent reviewer").start_time == begin
    assert queued.start_time == begin
    assert queued.end_time is not None
    assert queued.end_time - begin >= 60_000_000_000
    assert attributes_of(queued)["asm.queue.wait"] >= 60


def test_a_run_from_a_clock_that_runs_ahead_does_not_end_before_it_began(recorded: Recorded) -> None:
    run = submitted(created_at=datetime.now(UTC) + timedelta(hours=1))
    told = observer().run(run, "reviewer")
    told.started(running := claimed(run), SESSION)
    told.ended(ended(running))
    for span in recorded.spans():
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
    assert attributes_of(recorded.span("asm.run.queued"))["asm.queue.wait"] == 0


# -- parents


def test_a_run_is_a_child_of_the_open_span_it_was_submitted_in(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("request"):
        run = submitted()
        told = observer().run(run, "reviewer")
    told.ended(ended(run, RunStatus.CANCELLED))
    assert is_child_of(recorded.span("invoke_agent reviewer"), recorded.span("request"))
    assert recorded.span("invoke_agent reviewer").links == ()


def test_the_submitters_span_is_found_from_another_context(recorded: Recorded) -> None:
    request = recorded.tracer.start_span("request")
    with trace.use_span(request):
        run = submitted()
    with recorded.tracer.start_as_current_span("the server's"):
        told = observer().run(run, None)
    told.ended(ended(run, RunStatus.CANCELLED))
    request.end()
    assert is_child_of(recorded.span("invoke_agent"), recorded.span("request"))


def test_a_run_whose_submitters_span_has_ended_is_linked_to_it(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("request") as request:
        run = submitted()
    assert not request.is_recording()  # and somebody still holds it
    with recorded.tracer.start_as_current_span("the server's"):
        told = observer().run(run, "reviewer")
    told.ended(ended(run, RunStatus.CANCELLED))
    invoke = recorded.span("invoke_agent reviewer")
    assert invoke.parent is None
    assert [link.context.span_id for link in invoke.links] == [span_id_of(recorded.span("request"))]


def test_a_run_submitted_by_another_process_is_linked_to_its_trace_context(recorded: Recorded) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    told = observer().run(submitted(metadata={"trace_context": {"traceparent": traceparent}}), "reviewer")
    told.abandoned()
    invoke = recorded.span("invoke_agent reviewer")
    assert invoke.parent is None
    (link,) = invoke.links
    assert link.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert link.context.span_id == 0xB7AD6B7169203331


def test_a_run_that_its_caller_executes_is_a_child_of_that_caller_and_linked(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("submission"):
        run = submitted()
    with recorded.tracer.start_as_current_span("worker"):
        told = observer().run(run, None, awaited=True)
    told.abandoned()
    invoke = recorded.span("invoke_agent")
    assert is_child_of(invoke, recorded.span("worker"))
    assert [link.context.span_id for link in invoke.links] == [span_id_of(recorded.span("submission"))]


@pytest.mark.parametrize(
    "trace_context", ["nonsense", {"traceparent": 7}, {"traceparent": "00-xyz"}, ["x"], None]
)
def test_a_trace_context_that_is_none_is_ignored(recorded: Recorded, trace_context: object) -> None:
    observer().run(submitted(metadata={"trace_context": trace_context}), "reviewer").abandoned()
    invoke = recorded.span("invoke_agent reviewer")
    assert invoke.parent is None
    assert invoke.links == ()


def test_without_a_current_span_there_is_no_trace_context(recorded: Recorded) -> None:
    assert observer().trace_context() == {}


def test_the_trace_context_is_that_of_the_current_span(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("request") as request:
        headers = observer().trace_context()
    context = request.get_span_context()
    version, trace_id, span_id, flags = headers["traceparent"].split("-")
    assert (version, int(trace_id, 16), int(span_id, 16)) == ("00", context.trace_id, context.span_id)
    assert int(flags, 16) & 1  # sampled


def test_spans_of_submitters_are_not_kept_alive(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("request"):
        observer().trace_context()
    gc.collect()
    assert not observer()._spans._submitters  # type: ignore[attr-defined]  # the only place that holds them


# -- ends


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.TIMEOUT])
def test_a_run_that_failed_or_timed_out_is_an_error_with_its_code(
    recorded: Recorded, status: RunStatus
) -> None:
    run = submitted()
    told = observer().run(run, "reviewer")
    told.started(running := claimed(run), SESSION)
    told.ended(ended(running, status, error={"code": "provider_timeout", "message": "no answer"}))
    for name in ("invoke_agent reviewer", "asm.run.execute"):
        span = recorded.span(name)
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description is None
        assert attributes_of(span)["error.type"] == "provider_timeout"
        assert attributes_of(span)["asm.run.status"] == status
        assert span.events == ()


def test_a_cancelled_run_is_no_error(recorded: Recorded) -> None:
    run = submitted()
    told = observer().run(run, "reviewer")
    told.started(running := claimed(run), SESSION)
    told.ended(ended(running, RunStatus.CANCELLED, error={"code": "run_cancelled", "message": "why"}))
    for name in ("invoke_agent reviewer", "asm.run.execute"):
        assert recorded.span(name).status.status_code is StatusCode.UNSET
        assert attributes_of(recorded.span(name))["asm.run.status"] == "cancelled"
        assert "error.type" not in attributes_of(recorded.span(name))


def test_an_adapter_that_crashed_is_told_by_an_exception_event(recorded: Recorded) -> None:
    run = submitted()
    told = observer().run(run, "reviewer")
    told.started(running := claimed(run), SESSION)
    error = {
        "code": "provider_error",
        "message": "scripted raised KeyError",
        "details": {"exception": "KeyError"},
    }
    told.ended(ended(running, RunStatus.FAILED, error=error))
    (crash,) = recorded.span("asm.run.execute").events
    assert crash.name == "exception"
    assert dict(crash.attributes or {}) == {"exception.type": "KeyError"}


def test_a_run_cancelled_in_the_queue_has_waited_and_never_executed(recorded: Recorded) -> None:
    run = submitted()
    told = observer().run(run, "reviewer")
    told.queued(0)
    told.ended(ended(run, RunStatus.CANCELLED))
    assert recorded.names() == ["asm.run.queued", "invoke_agent reviewer"]
    assert attributes_of(recorded.span("invoke_agent reviewer"))["asm.run.status"] == "cancelled"


def test_a_run_that_ended_elsewhere_says_so_here_without_its_tokens(recorded: Recorded) -> None:
    run = submitted()
    told = observer().run(run, "reviewer")
    told.ended(ended(claimed(run), token_usage={"input_tokens": 1, "output_tokens": 2}))
    assert recorded.names() == ["invoke_agent reviewer"]
    attributes = attributes_of(recorded.span("invoke_agent reviewer"))
    assert attributes["asm.run.status"] == "completed"
    assert "gen_ai.usage.input_tokens" not in attributes


def test_an_attempt_that_is_abandoned_is_an_error(recorded: Recorded) -> None:
    run = submitted()
    told = observer().run(run, "reviewer")
    told.started(claimed(run), SESSION)
    told.abandoned()
    execute = recorded.span("asm.run.execute")
    assert [event.name for event in execute.events] == ["asm.run.abandoned"]
    assert execute.status.status_code is StatusCode.ERROR
    assert recorded.span("invoke_agent reviewer").status.status_code is StatusCode.ERROR
    assert attributes_of(recorded.span("invoke_agent reviewer"))["asm.run.status"] == "running"


def test_a_queued_run_that_another_process_took_is_no_error(recorded: Recorded) -> None:
    observer().run(submitted(), "reviewer").abandoned()
    invoke = recorded.span("invoke_agent reviewer")
    assert invoke.status.status_code is StatusCode.UNSET
    assert attributes_of(invoke)["asm.run.status"] == "pending"


def test_a_requeued_run_ends_its_spans_and_the_next_attempt_has_its_own(recorded: Recorded) -> None:
    run = submitted()
    first = observer().run(run, "reviewer")
    first.started(claimed(run), SESSION)
    first.requeued()
    second = observer().run(again := claimed(run, attempt=2), None)
    second.started(again, SESSION)
    second.ended(ended(again))
    one, two = recorded.spans("invoke_agent reviewer")
    assert (attributes_of(one)["asm.run.status"], attributes_of(two)["asm.run.status"]) == (
        "pending",
        "completed",
    )
    assert attributes_of(two)["asm.run.attempt"] == 2
    assert one.end_time is not None
    assert two.start_time is not None
    assert two.start_time >= one.end_time
    assert len(recorded.spans("asm.run.queued")) == 1


def test_only_the_first_end_counts(recorded: Recorded) -> None:
    run = submitted()
    told = observer().run(run, "reviewer")
    told.started(running := claimed(run), SESSION)
    told.ended(ended(running))
    told.ended(ended(running, RunStatus.FAILED))
    told.abandoned()
    told.requeued()
    told.stored(event(EventType.TOOL_CALL_STARTED, {"tool_call_id": "1", "tool_name": "ls"}))
    told.started(running, SESSION)
    assert recorded.names() == ["asm.run.queued", "asm.run.execute", "invoke_agent reviewer"]
    assert attributes_of(recorded.span("invoke_agent reviewer"))["asm.run.status"] == "completed"


def test_the_provider_is_the_one_that_is_known_last(recorded: Recorded) -> None:
    for provider, at_the_end in (("scripted", "scripted"), (None, "shell"), (None, None)):
        told = observer().run(run := submitted().replace(provider=provider), "reviewer")
        told.started(running := claimed(run), SESSION)
        told.ended(ended(running).replace(provider=at_the_end))
    observer().run(submitted().replace(provider="scripted"), "reviewer").abandoned()
    told_providers = [
        attributes_of(span)["gen_ai.provider.name"] for span in recorded.spans("invoke_agent reviewer")
    ]
    assert told_providers == ["scripted", "shell", "_OTHER", "scripted"]


# -- what happens while it executes


def test_the_first_output_is_an_event_and_the_runs_own_events_are_none(recorded: Recorded) -> None:
    told = observer().run(run := submitted(), "reviewer")
    told.started(running := claimed(run), SESSION)
    for type in ("message_sent", "run_started", "message_streamed", "message_received"):
        told.stored(event(EventType(type)))
    told.ended(ended(running))
    (first,) = recorded.span("asm.run.execute").events
    assert first.name == "asm.run.first_output"
    assert dict(first.attributes or {}) == {"asm.event.type": "message_streamed"}


def test_a_tool_call_is_a_span_from_its_start_to_its_completion(recorded: Recorded) -> None:
    told = observer().run(run := submitted(), "reviewer")
    told.started(running := claimed(run), SESSION)
    began = datetime.now(UTC) - timedelta(seconds=2)
    call = {"tool_call_id": "call_1", "tool_name": "search", "tool_input": {"secret": "query"}}
    told.stored(event(EventType.TOOL_CALL_STARTED, call, at=began))
    told.stored(event(EventType.TOOL_CALL_COMPLETED, call, at=began + timedelta(seconds=1)))
    told.ended(ended(running))
    tool = recorded.span("execute_tool search")
    assert is_child_of(tool, recorded.span("asm.run.execute"))
    assert attributes_of(tool) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "search",
        "gen_ai.tool.call.id": "call_1",
        "asm.run.id": "run_1",
        "asm.session.id": "ses_1",
    }
    assert tool.start_time is not None
    assert tool.end_time is not None
    assert tool.end_time - tool.start_time == 1_000_000_000
    assert tool.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"error": {"code": "tool_timeout", "message": "no answer"}}, "tool_timeout"),
        ({"error_code": "tool_outcome_unknown", "error_message": "gone"}, "tool_outcome_unknown"),
        ({"error_code": "first", "error": {"code": "second"}}, "first"),
        ({"error": {"code": "a sentence, not a code"}}, "_OTHER"),
        ({"error": {"code": 7}}, "_OTHER"),
        ({"error": {"code": "c" * 1_000}}, "_OTHER"),
        ({"error": "broken"}, "_OTHER"),
        ({}, "_OTHER"),
    ],
)
def test_a_tool_call_that_failed_is_an_error_with_its_code(
    recorded: Recorded, data: JsonObject, code: str
) -> None:
    told = observer().run(run := submitted(), "reviewer")
    told.started(running := claimed(run), SESSION)
    told.stored(event(EventType.TOOL_CALL_STARTED, {"tool_call_id": "1", "tool_name": "ls"}))
    told.stored(event(EventType.TOOL_CALL_FAILED, {"tool_call_id": "1", **data}))
    told.ended(ended(running))
    tool = recorded.span("execute_tool ls")
    assert tool.kind is SpanKind.INTERNAL
    assert tool.status.status_code is StatusCode.ERROR
    assert attributes_of(tool)["error.type"] == code


def test_a_tool_call_that_is_started_again_is_one_call(recorded: Recorded) -> None:
    told = observer().run(run := submitted(), "reviewer")
    told.started(running := claimed(run), SESSION)
    for _ in range(2):
        told.stored(event(EventType.TOOL_CALL_STARTED, {"tool_call_id": "1", "tool_name": "ls"}))
    told.stored(event(EventType.TOOL_CALL_COMPLETED, {"tool_call_id": "1"}))
    told.ended(ended(running))
    assert "asm.tool.unfinished" not in attributes_of(recorded.span("execute_tool ls"))


def test_tool_calls_in_parallel_are_told_apart_by_their_ids(recorded: Recorded) -> None:
    told = observer().run(run := submitted(), "reviewer")
    told.started(running := claimed(run), SESSION)
    for number in "12":
        told.stored(event(EventType.TOOL_CALL_STARTED, {"tool_call_id": number, "tool_name": "ls"}))
    told.stored(event(EventType.TOOL_CALL_COMPLETED, {"tool_call_id": "2"}))
    assert [attributes_of(tool)["gen_ai.tool.call.id"] for tool in recorded.spans("execute_tool ls")] == ["2"]
    told.stored(event(EventType.TOOL_CALL_COMPLETED, {"tool_call_id": "unknown"}))
    told.ended(ended(running))
    last = recorded.spans("execute_tool ls")[1]
    assert attributes_of(last)["gen_ai.tool.call.id"] == "1"
    assert attributes_of(last)["asm.tool.unfinished"] is True


def test_a_completion_that_is_stored_with_the_end_is_no_unfinished_call(recorded: Recorded) -> None:
    told = observer().run(run := submitted(), "reviewer")
    told.started(running := claimed(run), SESSION)
    told.stored(event(EventType.TOOL_CALL_STARTED, {"tool_call_id": "1", "tool_name": "ls"}))
    told.ended(ended(running), [event(EventType.TOOL_CALL_COMPLETED, {"tool_call_id": "1"})])
    assert "asm.tool.unfinished" not in attributes_of(recorded.span("execute_tool ls"))


def test_open_tool_calls_are_bounded(recorded: Recorded) -> None:
    told = observer().run(run := submitted(), "reviewer")
    told.started(running := claimed(run), SESSION)
    for number in range(MAX_OPEN_TOOL_CALLS + 1):
        told.stored(event(EventType.TOOL_CALL_STARTED, {"tool_call_id": str(number), "tool_name": "ls"}))
    (oldest,) = recorded.spans("execute_tool ls")
    assert attributes_of(oldest)["gen_ai.tool.call.id"] == "0"
    assert attributes_of(oldest)["asm.tool.unfinished"] is True
    told.ended(ended(running))
    assert len(recorded.spans("execute_tool ls")) == MAX_OPEN_TOOL_CALLS + 1


def test_tool_calls_without_an_id_or_with_odd_fields_are_left_out(recorded: Recorded) -> None:
    told = observer().run(run := submitted(), "reviewer")
    told.started(running := claimed(run), SESSION)
    for data in ({}, {"tool_call_id": 7}, {"tool_call_id": None}, {"tool_call_id": ""}):
        told.stored(event(EventType.TOOL_CALL_STARTED, dict(data)))
        told.stored(event(EventType.TOOL_CALL_COMPLETED, dict(data)))
    told.stored(event(EventType.TOOL_CALL_STARTED, {"tool_call_id": "1", "tool_name": ["odd"]}))
    told.ended(ended(running))
    assert recorded.names() == ["asm.run.queued", "execute_tool", "asm.run.execute", "invoke_agent reviewer"]


async def test_what_the_adapters_task_traces_lies_in_the_execution(recorded: Recorded) -> None:
    told = observer().run(run := submitted(), "reviewer")
    assert told.execution_context() is None
    told.started(running := claimed(run), SESSION)

    async def adapter() -> None:
        with recorded.tracer.start_as_current_span("model call"):
            await asyncio.sleep(0)

    await asyncio.get_running_loop().create_task(adapter(), context=told.execution_context())
    assert not trace.get_current_span().get_span_context().is_valid
    told.ended(ended(running))
    assert is_child_of(recorded.span("model call"), recorded.span("asm.run.execute"))


def test_a_run_whose_trace_was_sampled_out_leaves_no_spans_and_samples_out_its_adapter() -> None:
    exporter = InMemorySpanExporter()
    tracers = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    before = install(tracer_provider=tracers)
    try:
        told = observer().run(run := submitted(), "reviewer")
        told.started(running := claimed(run), SESSION)
        context = told.execution_context()
        assert context is not None
        current = context.run(trace.get_current_span)
        assert current.get_span_context().is_valid
        assert not current.get_span_context().trace_flags.sampled
        told.stored(event(EventType.TOOL_CALL_STARTED, {"tool_call_id": "1", "tool_name": "ls"}))
        assert observer().write_began("append", "ses_1", 1, told) is None
        told.ended(ended(running))
    finally:
        set_observer(before)
    assert exporter.get_finished_spans() == ()


def test_a_provider_that_makes_no_spans_costs_what_none_costs() -> None:
    before = install(tracer_provider=trace.NoOpTracerProvider())
    try:
        told = observer().run(submitted(), "reviewer")
        told.started(claimed(submitted()), SESSION)
        assert told.execution_context() is None
        assert observer().write_began("append", "ses_1", 1, told) is None
    finally:
        set_observer(before)


def test_a_submitter_that_was_sampled_out_takes_its_run_with_it(recorded: Recorded) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    told = observer().run(submitted(metadata={"trace_context": {"traceparent": traceparent}}), "reviewer")
    told.abandoned()
    assert recorded.spans() == []


# -- around the runs


def test_a_session_is_a_trace_of_its_own_linked_to_who_started_it(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("request"):
        token = observer().session_started(SESSION)
    observer().session_stopped(token, None)
    session = recorded.span("asm.session")
    assert session.parent is None
    assert [link.context.span_id for link in session.links] == [span_id_of(recorded.span("request"))]
    assert attributes_of(session) == {
        "asm.session.id": "ses_1",
        "gen_ai.conversation.id": "ses_1",
        "gen_ai.agent.id": "reviewer",
    }


def test_a_session_whose_server_crashed_is_an_error(recorded: Recorded) -> None:
    observer().session_stopped(observer().session_started(SESSION), KeyError("x"))
    assert recorded.span("asm.session").status.status_code is StatusCode.ERROR
    assert attributes_of(recorded.span("asm.session"))["error.type"] == "KeyError"


def test_a_drain_is_a_child_of_its_caller_and_an_error_when_it_takes_too_long(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("shutdown"):
        token = observer().drain_began("ses_1")
        observer().drain_ended(token, DrainTimeout("too long"))
    drain = recorded.span("asm.drain")
    assert is_child_of(drain, recorded.span("shutdown"))
    assert attributes_of(drain) == {"asm.session.id": "ses_1", "error.type": "drain_timeout"}


def test_a_caller_that_is_cancelled_is_no_error(recorded: Recorded) -> None:
    observer().drain_ended(observer().drain_began("ses_1"), asyncio.CancelledError())
    assert recorded.span("asm.drain").status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("kind", ["append", "flush"])
def test_a_write_of_a_run_carries_its_size_and_the_numbers_it_gave(recorded: Recorded, kind: str) -> None:
    told = observer().run(run := submitted(), "reviewer")
    told.started(running := claimed(run), SESSION)
    token = observer().write_began(kind, "ses_1", 2, told)
    stored = [event(EventType.CUSTOM).replace(sequence_number=number) for number in (41, 42)]
    observer().write_ended(token, stored, None)
    told.ended(ended(running))
    write = recorded.span(f"asm.store.{kind}")
    assert is_child_of(write, recorded.span("asm.run.execute"))
    assert attributes_of(write) == {
        "asm.session.id": "ses_1",
        "asm.store.events": 2,
        "asm.store.first_sequence": 41,
        "asm.store.last_sequence": 42,
    }


def test_a_write_of_a_run_that_nobody_traces_is_not_traced(recorded: Recorded) -> None:
    before = install(tracer_provider=trace.NoOpTracerProvider())
    told = observer().run(submitted(), "reviewer")
    set_observer(before)
    assert observer().write_began("append", "ses_1", 1, told) is None
    assert recorded.open_spans.names() == []


def test_a_write_that_failed_is_an_error_with_its_code(recorded: Recorded) -> None:
    observer().write_ended(observer().write_began("append", "ses_1", 1), None, LeaseLost("gone"))
    assert recorded.span("asm.store.append").status.status_code is StatusCode.ERROR
    assert attributes_of(recorded.span("asm.store.append"))["error.type"] == "lease_lost"
