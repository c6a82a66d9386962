"""docs/telemetry.md lists what there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from opentelemetry.sdk.metrics.export import Histogram, Sum

from asm_runtime import Event, Run, RunStatus, Session
from asm_runtime.errors import ProviderError, StoreUnavailable
from asm_runtime.observer import RunTrace, observer
from asm_runtime.telemetry import capture_content, conventions
from tests.telemetry.recorded import Recorded, attributes_of
from tests.telemetry.test_instrumentation import python

PAGE = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
SESSION = Session.new(agent_id="{agent_id}", id="ses_1")


def table(first_heading: str) -> list[list[str]]:
    """The rows of a table of the page, cell by cell."""
    rows = PAGE.split(f"\n| {first_heading} |")[1].split("\n\n")[0].split("\n")[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def begun(**metadata: object) -> tuple[RunTrace, Run]:
    run = Run.new(session_id="ses_1", provider="scripted", metadata=metadata)
    told = observer().run(run, SESSION.agent_id)
    told.queued(0)
    running = run.replace(attempt=1).with_status(RunStatus.RUNNING)
    observer().in_flight_changed("ses_1", 1)
    told.started(running, SESSION)
    return told, running


def everything_happens() -> None:
    """Every span, span event, attribute and metric that there is."""
    told, running = begun(options={"adapter_opts": {"model": "small"}})
    for type, call_id in (("tool_call_started", "1"), ("tool_call_failed", "1"), ("tool_call_started", "2")):
        data = {"tool_call_id": call_id, "tool_name": "{tool_name}", "tool_input": 1, "tool_output": 2}
        told.stored(Event.new(type=type, session_id="ses_1", run_id=running.id, data=data))
    for kind in ("append", "flush"):
        stored = [Event.new(type="custom", session_id="ses_1", sequence_number=7)]
        observer().write_ended(observer().write_began(kind, "ses_1", 1, told), stored, None)
        observer().write_ended(
            observer().write_began(kind, "ses_1", 1, told), None, StoreUnavailable("out of reach")
        )
    usage = dict.fromkeys(conventions.GEN_AI_USAGE, 1)
    model = {"model": "small-1", "stop_reason": "end"}
    error = ProviderError("it crashed", details={"exception": "KeyError"}).to_dict()
    failed = running.with_status(RunStatus.FAILED)
    told.ended(failed.replace(token_usage=usage, provider_metadata=model, error=error, output="done"))
    told.late_event()
    abandoned, _ = begun()
    abandoned.abandoned()
    observer().session_stopped(observer().session_started(SESSION), KeyError("x"))
    observer().drain_ended(observer().drain_began("ses_1"), KeyError("x"))
    observer().queue_depth_changed("ses_1", 1)
    observer().waiters_changed(1)
    observer().group_committed(1, 1)
    observer().subscriber_lagged("ses_1", 1)


def test_the_page_lists_every_span_with_its_attributes(recorded: Recorded) -> None:
    everything_happens()
    seen: dict[str, set[str]] = {}
    for span in recorded.spans():
        seen.setdefault(span.name, set()).update(attributes_of(span))
    listed: dict[str, set[str]] = {}
    for name, _, _, attributes in table("span"):
        same = listed["asm.store.append"] if attributes == "the same" else set[str]()
        listed[name.strip("`")] = same | set(code_in(attributes))
    assert seen == listed


def test_the_page_lists_all_content(recorded: Recorded) -> None:
    def attributes() -> set[str]:
        everything_happens()
        found = {name for span in recorded.spans() for name in attributes_of(span)}
        return found | {
            name for span in recorded.spans() for event in span.events for name in event.attributes or {}
        }

    without = attributes()
    capture_content()
    try:
        assert attributes() - without == {name for cell, *_ in table("content") for name in code_in(cell)}
    finally:
        capture_content(False)


def test_the_page_names_the_parent_of_every_span(recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("caller"):
        everything_happens()
    by_id = {span.context.span_id: span.name for span in recorded.spans() if span.context is not None}
    listed = {name.strip("`"): code_in(parent) for name, parent, *_ in table("span")}
    for span in recorded.spans():
        if span.parent is not None and by_id[span.parent.span_id] != "caller":
            (parent,) = listed[span.name]
            assert by_id[span.parent.span_id].split()[0] == parent
        elif span.name != "caller":
            assert listed[span.name] == []


def test_the_page_lists_every_span_event(recorded: Recorded) -> None:
    everything_happens()
    seen = {(event.name, span.name.split()[0]) for span in recorded.spans() for event in span.events}
    assert seen == {(name.strip("`"), on) for name, spans, _ in table("event") for on in code_in(spans)}


def test_the_page_lists_every_metric_with_its_kind_unit_and_attributes(recorded: Recorded) -> None:
    everything_happens()
    seen = {
        metric.name: (kind_of(metric.data), metric.unit, recorded.attributes_of_metric(metric.name))
        for metric in recorded.metrics_data()
    }
    listed = {
        name.strip("`"): (kind.split()[0], unit.strip("`"), set(code_in(attributes)))
        for name, kind, unit, attributes, _ in table("metric")
    }
    assert seen == listed


def kind_of(data: object) -> str:
    if isinstance(data, Sum):
        return "Counter" if data.is_monotonic else "UpDownCounter"
    return "Histogram" if isinstance(data, Histogram) else type(data).__name__


def test_the_page_names_the_version_of_the_conventions() -> None:
    assert f"version {conventions.SEMCONV_VERSION} of the OpenTelemetry" in PAGE


def test_the_program_of_the_page_prints_its_trace() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = python(program)
    for name in ("invoke_agent echo", "asm.run.execute", "asm.session", "asm.run.duration", "my-service"):
        assert f'"{name}"' in printed
