"""What stands at the kernel's hooks: turns what it is told into spans and metrics."""

from __future__ import annotations

import contextvars
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from opentelemetry import metrics, trace
from opentelemetry.trace import Span

from asm_runtime.observer import Observer, RunTrace, set_observer
from asm_runtime.records import Event, Run, Session
from asm_runtime.telemetry.conventions import SCHEMA_URL, SCOPE, SCOPE_VERSION
from asm_runtime.telemetry.metrics import Levels, Metrics
from asm_runtime.telemetry.spans import RunSpans, Spans, end_span, end_write

__all__ = ["install"]

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

_reported: set[str] = set()


def _guarded(hook: F) -> F:
    """Have a hook log its error, the first time, and answer as the kernel's own: as if nobody listened.

    Guarded is what calls OpenTelemetry: processors, samplers and views of the application run in it.
    """

    @functools.wraps(hook)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return hook(self, *args, **kwargs)
        except Exception:
            if hook.__qualname__ not in _reported:
                _reported.add(hook.__qualname__)
                logger.exception("telemetry failed in %s; this is reported once", hook.__qualname__)
            unheard = getattr(super(type(self), self), hook.__name__)  # pyright: ignore[reportUnknownArgumentType]  # any hook
            return unheard(*args, **kwargs)

    return cast(F, guarded)


class _MeasuredRun(RunTrace):
    """A run that nobody traces."""

    __slots__ = ("_executes_here", "_metrics")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._executes_here = False

    @_guarded
    def started(self, run: Run, session: Session) -> None:
        self._executes_here = True
        self._metrics.run_started(run)

    @_guarded
    def late_event(self) -> None:
        self._metrics.late_event()

    def requeued(self) -> None:
        self._executes_here = False

    @_guarded
    def ended(self, run: Run, events: Sequence[Event] = ()) -> None:
        if self._executes_here:
            self._executes_here = False
            self._metrics.run_ended(run)

    def abandoned(self) -> None:
        self._executes_here = False


class _TracedRun(RunTrace):
    """A run with spans. What is measured is measured also where they fail."""

    __slots__ = ("_levels", "_measured", "spans")

    def __init__(self, metrics: Metrics, levels: Levels, spans: RunSpans) -> None:
        self._levels = levels
        self._measured = _MeasuredRun(metrics)
        self.spans = spans

    def queued(self, depth: int) -> None:
        self.spans.queued(depth)

    @_guarded
    def started(self, run: Run, session: Session) -> None:
        self._measured.started(run, session)
        self.spans.started(run, session, self._levels.in_flight_of(run.session_id))

    @_guarded
    def execution_context(self) -> contextvars.Context | None:
        return self.spans.execution_context()

    @_guarded
    def stored(self, event: Event) -> None:
        self.spans.stored(event)

    @_guarded
    def late_event(self) -> None:
        self._measured.late_event()

    @_guarded
    def requeued(self) -> None:
        self._measured.requeued()
        self.spans.requeued()

    @_guarded
    def ended(self, run: Run, events: Sequence[Event] = ()) -> None:
        self._measured.ended(run)
        self.spans.ended(run, events)

    @_guarded
    def abandoned(self) -> None:
        self._measured.abandoned()
        self.spans.abandoned()


class _Instrumentation(Levels, Observer):
    """The observer that `install` puts in force."""

    __slots__ = ("_metrics", "_spans")

    def __init__(self, spans: Spans, metrics: Metrics) -> None:
        super().__init__()
        self._spans = spans
        self._metrics = metrics

    @_guarded
    def run(self, run: Run, agent_id: str | None, *, awaited: bool = False) -> RunTrace:
        spans = self._spans.run(run, agent_id, awaited=awaited)
        return _MeasuredRun(self._metrics) if spans is None else _TracedRun(self._metrics, self, spans)

    @_guarded
    def trace_context(self) -> dict[str, str]:
        return self._spans.trace_context()

    @_guarded
    def session_started(self, session: Session) -> object:
        return self._spans.session(session)

    @_guarded
    def session_stopped(self, token: object, reason: BaseException | None) -> None:
        if token is not None:
            end_span(cast(Span, token), reason)

    @_guarded
    def drain_began(self, session_id: str) -> object:
        return self._spans.drain(session_id)

    @_guarded
    def drain_ended(self, token: object, error: BaseException | None) -> None:
        if token is not None:
            end_span(cast(Span, token), error)

    @_guarded
    def write_began(self, kind: str, session_id: str, events: int, trace: RunTrace | None = None) -> object:
        if isinstance(trace, _MeasuredRun):
            return None
        run = trace.spans if isinstance(trace, _TracedRun) else None
        return self._spans.write(kind, session_id, events, run)

    @_guarded
    def write_ended(self, token: object, stored: list[Event] | None, error: BaseException | None) -> None:
        if token is not None:
            end_write(cast(Span, token), stored, error)

    @_guarded
    def group_committed(self, requests: int, events: int) -> None:
        self._metrics.group_committed(requests, events)

    @_guarded
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
    instrumentation = _Instrumentation(spans, Metrics(meter))
    instrumentation.observed_by(meter)
    return set_observer(instrumentation)
