"""What was exported, and how tests look at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.metrics.export import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer

Point = NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint


class OpenSpans(SpanProcessor):
    """Keeps account of spans that are started and not ended."""

    def __init__(self) -> None:
        self._open: dict[int, str] = {}
        self.ended_twice: list[str] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._open[span_id_of(span)] = span.name

    def on_end(self, span: ReadableSpan) -> None:
        if self._open.pop(span_id_of(span), None) is None:
            self.ended_twice.append(span.name)

    def names(self) -> list[str]:
        return list(self._open.values())


class Recorded:
    """The spans and metrics of one test."""

    def __init__(
        self,
        tracers: TracerProvider,
        exporter: InMemorySpanExporter,
        reader: InMemoryMetricReader,
        open_spans: OpenSpans,
    ) -> None:
        self.tracers = tracers
        self._exporter = exporter
        self._reader = reader
        self.open_spans = open_spans

    @property
    def tracer(self) -> Tracer:
        """The application's own."""
        return self.tracers.get_tracer("application")

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """The ended spans, of one name or all, in the order of their end."""
        ended = self._exporter.get_finished_spans()
        return [span for span in ended if name is None or span.name == name]

    def span(self, name: str) -> ReadableSpan:
        """The one span of that name."""
        (found,) = self.spans(name)
        return found

    def names(self) -> list[str]:
        return [span.name for span in self.spans()]

    def metrics_data(self) -> list[Metric]:
        """Every metric that has any points."""
        data = self._reader.get_metrics_data()
        if data is None:
            return []
        return [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def metrics(self) -> dict[str, list[Point]]:
        """Their points, by name."""
        return {metric.name: list[Point](metric.data.data_points) for metric in self.metrics_data()}

    def attributes_of_metric(self, name: str) -> set[str]:
        """The names of the attributes of its points."""
        return {attribute for point in self.metrics()[name] for attribute in point.attributes or {}}

    def value(self, name: str, **attributes: Any) -> Any:
        """The value of a sum: of the point with those attributes."""
        points = self.metrics()[name]
        (found,) = [point for point in points if dict(point.attributes or {}) == attributes]
        assert isinstance(found, NumberDataPoint)
        return found.value

    def histogram(self, name: str, attributes: Mapping[str, Any] | None = None) -> HistogramDataPoint:
        """The histogram with those attributes."""
        points = self.metrics()[name]
        (found,) = [point for point in points if dict(point.attributes or {}) == dict(attributes or {})]
        assert isinstance(found, HistogramDataPoint)
        return found


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    """A span's attributes."""
    return dict(span.attributes or {})


def span_id_of(span: ReadableSpan) -> int:
    """A span's id."""
    assert span.context is not None
    number: int = span.context.span_id
    return number


def is_child_of(child: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether one lies directly in the other."""
    assert child.context is not None
    assert parent.context is not None
    return (
        child.parent is not None
        and child.parent.span_id == parent.context.span_id
        and child.context.trace_id == parent.context.trace_id
    )
