"""An OpenTelemetry SDK for programs that have none: demos, scripts, small services."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO, TypeAlias

import msgspec
from opentelemetry import metrics, trace

from asm_runtime import options
from asm_runtime.errors import Conflict, DependencyMissing

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["ConfiguredTelemetry", "configure"]

AttributeValue: TypeAlias = str | bool | int | float
SpanTarget: TypeAlias = "Literal['console'] | SpanExporter | None"
MetricTarget: TypeAlias = "Literal['console'] | MetricExporter | None"


class ConfiguredTelemetry:
    """An SDK that `configure` has set up; a context manager that shuts it down."""

    def __init__(self, tracers: TracerProvider | None, meters: MeterProvider | None) -> None:
        self._tracers = tracers
        self._meters = meters
        self.is_shut_down = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def flush(self) -> None:
        """Export what has been recorded so far. Blocks until that is done."""
        if self._tracers is not None:
            self._tracers.force_flush()
        if self._meters is not None:
            self._meters.force_flush()

    def shutdown(self) -> None:
        """Export what is left and stop exporting, for good. Idempotent.

        Blocks until that is done: from a coroutine, call it with `asyncio.to_thread`, or when the
        loop has ended. A program that does not call it does so when the interpreter exits.
        """
        if self.is_shut_down:
            return
        self.is_shut_down = True
        if self._tracers is not None:
            self._tracers.shutdown()
        if self._meters is not None:
            self._meters.shutdown()


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    service_name: str
    resource_attributes: Mapping[str, AttributeValue]
    span_exporter: SpanTarget
    metric_exporter: MetricTarget
    metric_interval_ms: int
    stream: TextIO | None


_configured: tuple[ConfiguredTelemetry, _Options] | None = None


def configure(
    *,
    service_name: str = "asm-runtime",
    resource_attributes: Mapping[str, AttributeValue] | None = None,
    span_exporter: SpanTarget = "console",
    metric_exporter: MetricTarget = "console",
    metric_interval_ms: int = 60_000,
    stream: TextIO | None = None,
) -> ConfiguredTelemetry:
    """Set up the OpenTelemetry SDK for this process. Plain; before or after the first session.

    An application that sets its own providers does not need it: the runtime finds them. Everything
    else follows OpenTelemetry's environment variables (sampler, limits, batch sizes).

    Args:
        service_name: `service.name` of the resource.
        resource_attributes: More of its attributes.
        span_exporter: Where spans go: `console` (a JSON object a line), an exporter of yours (OTLP,
            for instance), or None: nowhere.
        metric_exporter: Likewise for metrics.
        metric_interval_ms: How often metrics are exported, in milliseconds.
        stream: Where `console` writes; None: standard output.

    Returns:
        A handle with `shutdown()`. The same options again: the same handle.

    Raises:
        DependencyMissing: The SDK is not installed.
        Conflict: The process has providers already, from elsewhere, or was configured otherwise or
            shut down; OpenTelemetry sets them once in a process.
        ValidationError: An option is not what is allowed.
    """
    global _configured
    given = _Options(
        service_name=options.identifier("service_name", service_name),
        resource_attributes=_checked_attributes(resource_attributes or {}),
        span_exporter=span_exporter,
        metric_exporter=metric_exporter,
        metric_interval_ms=options.integer("metric_interval_ms", metric_interval_ms, minimum=1),
        stream=stream,
    )
    try:
        from opentelemetry.sdk.metrics.export import MetricExporter
        from opentelemetry.sdk.trace.export import SpanExporter
    except ImportError as missing:
        raise DependencyMissing(
            "telemetry.configure() needs the OpenTelemetry SDK: pip install 'asm-runtime[otel]'"
        ) from missing
    _check_target("span_exporter", span_exporter, SpanExporter)
    _check_target("metric_exporter", metric_exporter, MetricExporter)
    if _configured is not None:
        handle, before = _configured
        if before != given or handle.is_shut_down:
            raise Conflict("telemetry is configured already, and can be once in a process")
        return handle
    if span_exporter is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        raise Conflict("this process has a tracer provider already: the runtime uses that one")
    handle = _set_up(given)
    _configured = (handle, given)
    return handle


def _checked_attributes(attributes: object) -> dict[str, AttributeValue]:
    try:
        return msgspec.convert(attributes, dict[str, AttributeValue])
    except msgspec.ValidationError:
        allowed = "a dict of str, bool, int or float by name"
        raise options.refused("resource_attributes", attributes, allowed) from None


def _check_target(name: str, target: object, kind: type) -> None:
    if target is not None and target != "console" and not isinstance(target, kind):
        raise options.refused(name, target, f"'console', a {kind.__name__} or None")


def _set_up(given: _Options) -> ConfiguredTelemetry:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    resource = Resource.create({**given.resource_attributes, SERVICE_NAME: given.service_name})
    meters = _set_up_metrics(given, resource)
    return ConfiguredTelemetry(_set_up_spans(given, resource), meters)


def _set_up_spans(given: _Options, resource: Resource) -> TracerProvider | None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    exporter = given.span_exporter
    if exporter is None:
        return None
    if exporter == "console":
        exporter = ConsoleSpanExporter(
            out=given.stream or sys.stdout, formatter=lambda span: span.to_json(indent=None) + "\n"
        )
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(tracers)
    return tracers


def _set_up_metrics(given: _Options, resource: Resource) -> MeterProvider | None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader

    exporter = given.metric_exporter
    if exporter is None:
        return None
    if exporter == "console":
        exporter = ConsoleMetricExporter(
            out=given.stream or sys.stdout, formatter=lambda data: data.to_json(indent=None) + "\n"
        )
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=given.metric_interval_ms)
    meters = MeterProvider(resource=resource, metric_readers=[reader])
    metrics.set_meter_provider(meters)
    if metrics.get_meter_provider() is not meters:
        meters.shutdown()
        raise Conflict("this process has a meter provider already: the runtime uses that one")
    return meters
