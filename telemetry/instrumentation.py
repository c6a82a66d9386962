"""What stands at the kernel's hooks: turns what it is told into spans and metrics."""

from __future__ import annotations

import contextvars
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from opentelemetry import metrics, trace
from opentelemetry.trace import Span

from asm_runtime.observer import Observer, RunTrace, set_observer
from asm_runtime.records import Event, Run, Session
from asm_runtime.telemetry.conventions import SCHEMA_URL, SCOPE, SCOPE_VERSION
from asm_runtime.telemetry.metrics import Metrics
from asm_runtime.telemetry.spans import RunSpans, Spans, end_span, end_write

__all__ = ["install"]

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=type[object])

_reported: set[str] = set()


def _never_raises(cls: C) -> C:
    """Have every hook of the class log its error, the first time, and answer as if nobody listened.

    Processors, samplers and exporters of the application run inside these hooks.
    """
    for base in (Observer, RunTrace):
        if issubclass(cls, base):
            for name, hook in tuple(vars(cls).items()):
                if callable(hook) and name in vars(base) and not name.startswith("_"):
                    setattr(cls, name, _guarded(hook, getattr(base, name)))
    return cls


def _guarded(hook: Callable[..., Any], harmless: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return hook(*args, **kwargs)
        except Exception:
            if hook.__qualname__ not in _reported:
                _reported.add(hook.__qualname__)
                logger.exception("telemetry failed in %s; this is reported once", hook.__qualname__)
            return harmless(*args, **kwargs)

    return guarded


@_never_raises
class _MeasuredRun(RunTrace):
    """A run that nobody traces."""

    __slots__ = ("_executes_here", "_metrics")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._executes_here = False

    def started(self, run: Run, session: Session) -> None:
        self._executes_here = True
        self._metrics.run_started(run)

    def late_event(self) -> None:
        self._metrics.late_event()

    def requeued(self) -> None:
        self._executes_here = False

    def ended(self, run: Run, events: Sequence[Event] = ()) -> None:
        if self._executes_here:
            self._executes_here = False
            self._metrics.run_ended(run)

    def abandoned(self) -> None:
        self._executes_here = False


@_never_raises
class _TracedRun(RunTrace):
    """A run with spans. What is measured is measured also where they fail."""

    __slots__ = ("_measured", "_metrics", "spans")

    def __init__(self, metrics: Metrics, spans: RunSpans) -> None:
        self._metrics = metrics
        self._measured = _MeasuredRun(metrics)
        self.spans = spans

    def queued(self, depth: int) -> None:
        self.spans.queued(depth)

    def started(self, run: Run, session: Session) -> None:
        self._measured.started(run, session)
        self.spans.started(run, session, self._metrics.in_flight_of(run.session_id))

    def execution_context(self) -> contextvars.Context | None:
        return self.spans.execution_context()

    def stored(self, event: Event) -> None:
        self.spans.stored(event)

    def late_event(self) -> None:
        self._measured.late_event()

    def requeued(self) -> None:
        self._measured.requeued()
        self.spans.requeued()

    def ended(self, run: Run, events: Sequence[Event] = ()) -> None:
        self._measured.ended(run)
        self.spans.ended(run, events)

    def abandoned(self) -> None:
        self._measured.abandoned()
        self.spans.abandoned()


@_never_raises
class _Instrumentation(Observer):
    """The observer that `install` puts in force."""

    __slots__ = ("_metrics", "_spans")

    def __init__(self, spans: Spans, metrics: Metrics) -> None:
        self._spans = spans
        self._metrics = metrics

    def run(self, run: Run, agent_id: str | None, *, awaited: bool = False) -> RunTrace:
        spans = self._spans.run(run, agent_id, awaited=awaited)
        return _MeasuredRun(self._metrics) if spans is None else _TracedRun(self._metrics, spans)

    def trace_context(self) -> dict[str, str]:
        return self._spans.trace_context()

    def session_started(self, session: Session) -> object:
        return self._spans.session(session)

    def session_stopped(self, token: object, reason: BaseException | None) -> None:
        if isinstance(token, Span):
            end_span(token, reason)

    def queue_depth_changed(self, session_id: str, change: int) -> None:
        self._metrics.queue_depth_changed(change)

    def in_flight_changed(self, session_id: str, change: int) -> None:
        self._metrics.in_flight_changed(session_id, change)

    def drain_began(self, session_id: str) -> object:
        return self._spans.drain(session_id)

    def drain_ended(self, token: object, error: BaseException | None) -> None:
        if isinstance(token, Span):
            end_span(token, error)

    def write_began(self, kind: str, session_id: str, events: int, trace: RunTrace | None = None) -> object:
        if isinstance(trace, _TracedRun):
            return self._spans.write(kind, session_id, events, trace.spans)
        return self._spans.write(kind, session_id, events, None) if trace is None else None

    def write_ended(self, token: object, stored: list[Event] | None, error: BaseException | None) -> None:
        if isinstance(token, Span):
            end_write(token, stored, error)

    def group_committed(self, requests: int, events: int) -> None:
        self._metrics.group_committed(requests, events)

    def waiters_changed(self, change: int) -> None:
        self._metrics.waiters_changed(change)

    def subscriber_lagged(self, session_id: str, behind: int) -> None:
        self._metrics.subscriber_lagged(behind)


def install(
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> Observer:
    """Have the runtime report to OpenTelemetry, in the whole process. `import asm_runtime` does it.

    Args:
        tracer_provider: Where spans go; None: to the global provider, whenever that is set.
        meter_provider: Likewise for metrics.

    Returns:
        The observer that was in force before, for `asm_runtime.observer.set_observer`.
    """
    tracer = trace.get_tracer(SCOPE, SCOPE_VERSION, tracer_provider, SCHEMA_URL)
    meter = metrics.get_meter(SCOPE, SCOPE_VERSION, meter_provider, SCHEMA_URL)
    spans = Spans(tracer, is_configured=tracer_provider is not None)
    return set_observer(_Instrumentation(spans, Metrics(meter)))
