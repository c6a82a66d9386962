"""The spans, and what is said with each.

A span is started with an explicit parent and ended explicitly; none is ever made the current one, so
nothing is left behind by a caller that is cancelled or a stream that is left. Only an adapter's task
has a current span: `asm.run.execute`, in a context that is its own.
"""

from __future__ import annotations

import contextvars
import time
import weakref
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from asm_runtime.errors import AsmError
from asm_runtime.payload import JsonObject
from asm_runtime.records import TERMINAL_EVENT_TYPES, Event, EventType, Run, RunStatus, Session
from asm_runtime.telemetry import content
from asm_runtime.telemetry import conventions as names
from asm_runtime.telemetry.metrics import ERRORS, error_type, is_count, models, word

__all__ = ["RunSpans", "Spans"]

MAX_OPEN_TOOL_CALLS = 256
"""How many tool calls of a run may be open at once; one more ends the oldest, as unfinished."""

_NO_OUTPUT = TERMINAL_EVENT_TYPES | {EventType.RUN_STARTED, EventType.MESSAGE_SENT}
_TOOL_STARTED = EventType.TOOL_CALL_STARTED
_TOOL_ENDED = frozenset((EventType.TOOL_CALL_COMPLETED, EventType.TOOL_CALL_FAILED))

_w3c = TraceContextTextMapPropagator()


class Spans:
    """Starts the spans of a process.

    Args:
        tracer: What makes them; one of the API's own follows a tracer provider that is set later.
        is_configured: Whether a provider is set; asked again until one is.
    """

    def __init__(self, tracer: Tracer, *, is_configured: bool = False) -> None:
        self._tracer = tracer
        self._is_configured = is_configured
        # In which span a run was submitted, as long as that is open and somewhere in this process.
        self._submitters: weakref.WeakValueDictionary[str, Span] = weakref.WeakValueDictionary()

    @property
    def is_on(self) -> bool:
        """Whether the application has set a tracer provider."""
        if not self._is_configured:
            provider = trace.get_tracer_provider()
            self._is_configured = not isinstance(provider, trace.ProxyTracerProvider)
        return self._is_configured

    def trace_context(self) -> dict[str, str]:
        """The caller's, as W3C headers."""
        current = trace.get_current_span()
        if not current.get_span_context().is_valid:
            return {}
        headers: dict[str, str] = {}
        _w3c.inject(headers)
        self._submitters[headers["traceparent"]] = current
        return headers

    def run(self, run: Run, agent_id: str | None, *, awaited: bool) -> RunSpans | None:
        """Begin a run's `invoke_agent`; None if nobody traces."""
        if not self.is_on:
            return None
        parent, links = self._origin_of(run, awaited=awaited)
        invoke = self._tracer.start_span(
            _named(names.OPERATION_INVOKE_AGENT, agent_id),
            parent,
            kind=SpanKind.INTERNAL,
            attributes=_invoke_attributes(run, agent_id),
            links=links,
            start_time=_not_later_than_now(run.created_at) if run.attempt <= 1 else None,
        )
        if not invoke.get_span_context().is_valid:
            return None
        return RunSpans(self._tracer, run, parent, invoke, agent_id)

    def session(self, session: Session) -> Span | None:
        """Begin an `asm.session`: it outlives its starter, so it is a trace of its own."""
        if not self.is_on:
            return None
        starter = trace.get_current_span().get_span_context()
        attributes: dict[str, AttributeValue] = {
            names.ASM_SESSION_ID: session.id,
            names.GEN_AI_CONVERSATION_ID: session.id,
            names.GEN_AI_AGENT_ID: session.agent_id,
        }
        return self._tracer.start_span(
            names.SPAN_SESSION,
            Context(),
            attributes=attributes,
            links=[Link(starter)] if starter.is_valid else [],
        )

    def drain(self, session_id: str) -> Span | None:
        """Begin an `asm.drain`, for the caller that waits for it."""
        if not self.is_on:
            return None
        return self._tracer.start_span(names.SPAN_DRAIN, attributes={names.ASM_SESSION_ID: session_id})

    def write(self, kind: str, session_id: str, events: int, run: RunSpans | None) -> Span | None:
        """Begin an `asm.store.append` or `asm.store.flush`, for a run or else for the caller."""
        if not self.is_on:
            return None
        span = self._tracer.start_span(names.SPAN_STORE[kind], None if run is None else run.innermost)
        if not span.is_recording():
            return None
        span.set_attribute(names.ASM_SESSION_ID, session_id)
        span.set_attribute(names.ASM_EVENTS, events)
        return span

    def _origin_of(self, run: Run, *, awaited: bool) -> tuple[Context, Sequence[Link]]:
        """The parent of a run, and what it is linked to instead."""
        stored = _part(run.metadata, "trace_context")
        headers = {name: value for name, value in stored.items() if isinstance(value, str)}
        submitter = self._submitters.get(headers.get("traceparent", ""))
        if submitter is not None and submitter.is_recording():
            return trace.set_span_in_context(submitter, Context()), ()
        origin = _w3c.extract(headers, Context())
        remote = trace.get_current_span(origin).get_span_context()
        if remote.is_valid and not remote.trace_flags.sampled:
            return origin, ()  # its trace was left out by a sampler: so is the run
        links = [Link(remote)] if remote.is_valid else []
        if awaited and trace.get_current_span().get_span_context().is_valid:
            return otel_context.get_current(), links
        return Context(), links


class RunSpans:
    """The spans of one run in this process: `invoke_agent`, and what lies inside it.

    They end with the first of `ended`, `requeued` and `abandoned`; what comes later changes nothing.
    """

    __slots__ = (
        "_agent_id",
        "_depth",
        "_execute",
        "_has_output",
        "_invoke",
        "_is_open",
        "_outside",
        "_session_id",
        "_submitted_at",
        "_tools",
        "_tracer",
        "innermost",
    )

    innermost: Context
    """What belongs to the run now is a child of the span in here."""

    def __init__(
        self, tracer: Tracer, run: Run, outside: Context, invoke: Span, agent_id: str | None
    ) -> None:
        self._tracer = tracer
        self._session_id = run.session_id
        self._submitted_at = run.created_at
        self._agent_id = agent_id
        self._outside = outside
        self._invoke = invoke
        self._execute: Span | None = None
        self._depth: int | None = None
        self._has_output = False
        self._tools: dict[str, Span] = {}
        self._is_open = True
        self.innermost = trace.set_span_in_context(invoke, outside)

    def queued(self, depth: int) -> None:
        """The run waits behind `depth` others."""
        self._depth = depth

    def started(self, run: Run, session: Session, in_flight: int) -> None:
        """Begin `asm.run.execute`."""
        if not self._is_open:
            return
        if self._agent_id is None:
            self._agent_id = session.agent_id
            self._invoke.update_name(_named(names.OPERATION_INVOKE_AGENT, session.agent_id))
            self._invoke.set_attributes(_agent(session.agent_id))
        if run.attempt <= 1:
            self._has_waited(run, run.started_at)
        attributes: dict[str, AttributeValue] = {
            names.ASM_RUN_ID: run.id,
            names.ASM_SESSION_ID: run.session_id,
            names.ASM_RUN_ATTEMPT: run.attempt,
        }
        if in_flight > 0:
            attributes[names.ASM_IN_FLIGHT_RUNS] = in_flight
        self._execute = self._tracer.start_span(names.SPAN_RUN_EXECUTE, self.innermost, attributes=attributes)
        self.innermost = trace.set_span_in_context(self._execute, self._outside)

    def execution_context(self) -> contextvars.Context | None:
        """A copy of the caller's context in which `asm.run.execute` is the current span."""
        if self._execute is None:
            return None
        copy = contextvars.copy_context()
        copy.run(otel_context.attach, self.innermost)
        return copy

    def stored(self, event: Event) -> None:
        """Say what an event means for the spans."""
        execute = self._execute
        if execute is None or not execute.is_recording():  # as one that has ended
            return
        kind = event.type
        if not self._has_output and kind not in _NO_OUTPUT:
            self._has_output = True
            execute.add_event(names.EVENT_FIRST_OUTPUT, {names.ASM_ADAPTER_EVENT_TYPE: str(kind)})
        if kind == _TOOL_STARTED:
            self._tool_started(event)
        elif kind in _TOOL_ENDED:
            self._tool_ended(event)

    def ended(self, run: Run, events: Iterable[Event]) -> None:
        """The run has ended."""
        for event in events:
            self.stored(event)
        if not self._is_open:
            return
        if self._execute is None and run.attempt == 0:
            self._has_waited(run, run.ended_at)
        invoke = self._invoke
        if invoke.is_recording():
            if run.provider is not None:
                invoke.set_attribute(names.GEN_AI_PROVIDER_NAME, run.provider)
            if self._execute is not None:
                invoke.set_attributes(_result_attributes(run))
            for span in (self._execute, invoke):
                if span is not None:
                    _say_how_it_ended(span, run)
        self._close()

    def requeued(self) -> None:
        """The attempt is over, the run is not."""
        self._leave(RunStatus.PENDING)

    def abandoned(self) -> None:
        """Nobody here knows how the run ends."""
        if self._is_open and self._execute is not None:
            self._execute.add_event(names.EVENT_ABANDONED)
            for span in (self._execute, self._invoke):
                span.set_attribute(names.ERROR_TYPE, names.EVENT_ABANDONED)
                span.set_status(StatusCode.ERROR, "abandoned by its executor")
        self._leave(RunStatus.PENDING if self._execute is None else RunStatus.RUNNING)

    def _leave(self, status: RunStatus) -> None:
        if self._is_open:
            for span in (self._execute, self._invoke):
                if span is not None:
                    span.set_attribute(names.ASM_RUN_STATUS, str(status))
            self._close()

    def _close(self) -> None:
        self._is_open = False
        for tool in self._tools.values():
            tool.set_attribute(names.ASM_TOOL_UNFINISHED, True)
            tool.end()
        self._tools.clear()
        if self._execute is not None:
            self._execute.end()
        self._invoke.end()

    def _has_waited(self, run: Run, until: datetime | None) -> None:
        """Make the `asm.run.queued`, in hindsight: a run may start before its submitter hears of it."""
        attributes: dict[str, AttributeValue] = {
            names.ASM_RUN_ID: run.id,
            names.ASM_SESSION_ID: self._session_id,
        }
        if self._depth is not None:
            attributes[names.ASM_QUEUE_DEPTH] = self._depth
        if until is not None:
            attributes[names.ASM_QUEUE_WAIT] = max((until - self._submitted_at).total_seconds(), 0.0)
        self._tracer.start_span(
            names.SPAN_RUN_QUEUED,
            self.innermost,
            attributes=attributes,
            start_time=_not_later_than_now(self._submitted_at),
        ).end()

    def _tool_started(self, event: Event) -> None:
        call_id = _text(event.data.get("tool_call_id"))
        if call_id is None or call_id in self._tools:
            return
        if len(self._tools) >= MAX_OPEN_TOOL_CALLS:
            oldest = self._tools.pop(next(iter(self._tools)))
            oldest.set_attribute(names.ASM_TOOL_UNFINISHED, True)
            oldest.end()
        tool_name = _tool_name(event.data.get("tool_name"))
        attributes: dict[str, AttributeValue] = {
            names.GEN_AI_OPERATION_NAME: names.OPERATION_EXECUTE_TOOL,
            names.GEN_AI_TOOL_CALL_ID: call_id,
            names.ASM_RUN_ID: event.run_id or "",
            names.ASM_SESSION_ID: self._session_id,
        }
        if tool_name is not None:
            attributes[names.GEN_AI_TOOL_NAME] = tool_name
        if content.is_captured() and "tool_input" in event.data:
            attributes[names.GEN_AI_TOOL_CALL_ARGUMENTS] = content.shown(event.data["tool_input"])
        self._tools[call_id] = self._tracer.start_span(
            _named(names.OPERATION_EXECUTE_TOOL, tool_name),
            self.innermost,
            attributes=attributes,
            start_time=_not_later_than_now(event.timestamp),
        )

    def _tool_ended(self, event: Event) -> None:
        tool = self._tools.pop(_text(event.data.get("tool_call_id")) or "", None)
        if tool is None:
            return
        data = event.data
        if content.is_captured() and "tool_output" in data:
            tool.set_attribute(names.GEN_AI_TOOL_CALL_RESULT, content.shown(data["tool_output"]))
        if event.type == EventType.TOOL_CALL_FAILED:
            error = _part(data, "error")
            code = word(data.get("error_code")) or word(error.get("code"))
            _failed(tool, code or names.OTHER, data.get("error_message") or error.get("message"))
        tool.end(_not_later_than_now(event.timestamp))


def end_span(span: Span, error: BaseException | None) -> None:
    """End a span of ours, with the error that ended its work; a cancelled caller is none."""
    if isinstance(error, Exception):
        code = error.code if isinstance(error, AsmError) else type(error).__qualname__
        _failed(span, word(code) or names.OTHER, str(error))
    span.end()


def end_write(span: Span, stored: Sequence[Event] | None, error: BaseException | None) -> None:
    """End the span of a write, with the numbers it gave."""
    if stored:
        numbers = [event.sequence_number for event in stored if event.sequence_number is not None]
        if numbers:
            span.set_attribute(names.ASM_FIRST_SEQUENCE, min(numbers))
            span.set_attribute(names.ASM_LAST_SEQUENCE, max(numbers))
    end_span(span, error)


def _named(operation: str, what: str | None) -> str:
    return operation if what is None else f"{operation} {what}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _tool_name(value: object) -> str | None:
    """The name of a tool. Some agents report a title, which says what the call is about: content."""
    name = _text(value)
    if name is None or content.is_captured():
        return name
    return word(name) or names.OTHER


def _part(whole: JsonObject, name: str) -> JsonObject:
    """An object inside an object that anybody may have written."""
    part = whole.get(name)
    return cast(JsonObject, part) if isinstance(part, dict) else {}


def _not_later_than_now(moment: datetime) -> int:
    """In nanoseconds of Unix time, as spans have it: a span must not end before it began."""
    return min(int(moment.timestamp() * 1_000_000) * 1000, time.time_ns())


def _invoke_attributes(run: Run, agent_id: str | None) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        names.GEN_AI_OPERATION_NAME: names.OPERATION_INVOKE_AGENT,
        names.GEN_AI_PROVIDER_NAME: run.provider or names.OTHER,
        names.GEN_AI_CONVERSATION_ID: run.session_id,
        names.ASM_RUN_ID: run.id,
        names.ASM_SESSION_ID: run.session_id,
    }
    if agent_id is not None:
        attributes |= _agent(agent_id)
    attributes |= models(run)
    if content.is_captured():
        attributes[names.GEN_AI_INPUT_MESSAGES] = content.input_messages(run.input)
    return attributes


def _agent(agent_id: str) -> dict[str, AttributeValue]:
    return {names.GEN_AI_AGENT_ID: agent_id, names.GEN_AI_AGENT_NAME: agent_id}


def _result_attributes(run: Run) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {**models(run)}
    for key, name in names.GEN_AI_USAGE.items():
        count = run.token_usage.get(key)
        if is_count(count):
            attributes[name] = count
    stop_reason = word(run.provider_metadata.get("stop_reason"))
    if stop_reason is not None:
        attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] = [stop_reason]
    if content.is_captured() and run.output is not None:
        attributes[names.GEN_AI_OUTPUT_MESSAGES] = content.output_messages(run.output, stop_reason)
    return attributes


def _say_how_it_ended(span: Span, run: Run) -> None:
    span.set_attribute(names.ASM_RUN_STATUS, str(run.status))
    span.set_attribute(names.ASM_RUN_ATTEMPT, run.attempt)
    if run.status not in ERRORS:
        return
    error: JsonObject = run.error or {}
    _failed(span, error_type(run), error.get("message"))
    crash = word(_part(error, "details").get("exception"))
    if crash is not None:
        attributes: dict[str, AttributeValue] = {names.EXCEPTION_TYPE: crash}
        if content.is_captured():
            attributes[names.EXCEPTION_MESSAGE] = content.shown(error.get("message") or "")
        span.add_event(names.EVENT_EXCEPTION, attributes)


def _failed(span: Span, error_type: str, message: object) -> None:
    """Mark a span as an error. What the error says is content: it quotes prompts and commands."""
    span.set_attribute(names.ERROR_TYPE, error_type)
    description = content.shown(message) if content.is_captured() and message else None
    span.set_status(StatusCode.ERROR, description)
