"""What people, models and tools said is in no telemetry, unless it is asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from opentelemetry.trace import StatusCode

from asm_runtime import AsmError, SessionManager, SessionServer, errors
from asm_runtime.adapters import ScriptedAdapter, ShellAdapter
from asm_runtime.adapters.scripted import Script, emit, fail, finish, say
from asm_runtime.observer import observer
from asm_runtime.ports import SessionStore
from asm_runtime.records import Run, Session
from asm_runtime.stores import InMemorySessionStore
from asm_runtime.telemetry import capture_content, content
from tests.telemetry.recorded import Recorded, attributes_of
from tests.telemetry.test_instrumentation import python

SECRET = "my diagnosis"

CALL = {"tool_call_id": "c1", "tool_name": "search"}

SCRIPTS: dict[str, Script] = {
    "ok": [
        emit("tool_call_started", {**CALL, "tool_input": {"query": SECRET}}),
        emit("tool_call_completed", {**CALL, "tool_output": [SECRET]}),
        say(SECRET),
        finish({"content": SECRET}, stop_reason="end_turn"),
    ],
    "tool": [
        emit("tool_call_started", {"tool_call_id": "c1", "tool_name": f"Looking up {SECRET}"}),
        emit("tool_call_failed", {"tool_call_id": "c1", "error_code": SECRET, "error_message": SECRET}),
        finish(SECRET, stop_reason=f"ended over {SECRET}"),
    ],
    "fail": [fail(errors.ProviderError(f"cannot answer {SECRET}", details={"prompt": SECRET}))],
    "odd": [fail(errors.RunFailed(SECRET, code=f"code of {SECRET}"))],
    "crash": [fail(RuntimeError(SECRET))],
}


@pytest.fixture
async def store() -> AsyncIterator[SessionStore]:
    async with InMemorySessionStore() as store:
        yield store


@pytest.fixture
def captured() -> Iterator[None]:
    capture_content()
    yield
    capture_content(False)


async def everything_is_said(store: SessionStore) -> None:
    """Runs of every end, whose inputs, outputs, tools and errors hold the secret."""
    for kind, script in SCRIPTS.items():
        async with SessionServer(
            store=store, adapter=ScriptedAdapter(script), session_opts={"agent_id": kind}
        ) as server:
            for given in ({"prompt": SECRET}, {"messages": [{"role": "user", "content": [SECRET]}]}, SECRET):
                with suppress(AsmError):
                    await server.execute_run(given)
    for adapter in (ShellAdapter(), ShellAdapter(allowed_commands=["true"])):
        for command in (f"echo '{SECRET}'; exit 3", [SECRET]):
            with pytest.raises(AsmError):
                await SessionManager(store, adapter).run_once({"command": command})
    about = KeyError(SECRET)
    session = Session.new(agent_id="a")
    observer().session_stopped(observer().session_started(session), about)
    observer().drain_ended(observer().drain_began(session.id), about)
    observer().write_ended(observer().write_began("append", session.id, 1), None, about)


async def test_content_is_in_no_span_and_no_metric(recorded: Recorded, store: SessionStore) -> None:
    await everything_is_said(store)
    assert len(recorded.spans()) > 30
    for span in recorded.spans():
        assert SECRET not in span.to_json(), span.name
        assert span.status.description is None
    assert SECRET not in str(recorded.metrics_data())


async def test_what_is_asked_for_is_there(recorded: Recorded, store: SessionStore, captured: None) -> None:
    await everything_is_said(store)
    for name in ("invoke_agent ok", "execute_tool search", f"execute_tool Looking up {SECRET}"):
        assert SECRET in recorded.spans(name)[0].to_json()
    for name in ("asm.session", "asm.drain", "asm.store.append"):
        failed = [span for span in recorded.spans(name) if span.status.status_code is StatusCode.ERROR]
        assert SECRET in str(failed[0].status.description)
    for kind in ("fail", "crash"):
        assert SECRET in str(recorded.spans(f"invoke_agent {kind}")[0].status.description)
    crashed = recorded.spans("invoke_agent crash")[0]
    assert [SECRET in str((event.attributes or {})["exception.message"]) for event in crashed.events] == [
        True
    ]
    assert SECRET not in str(recorded.metrics_data())


async def test_content_is_shaped_as_the_conventions_say(
    recorded: Recorded, store: SessionStore, captured: None
) -> None:
    adapter = ScriptedAdapter(SCRIPTS["ok"])
    async with SessionServer(store=store, adapter=adapter, session_opts={"agent_id": "ok"}) as server:
        await server.execute_run({"prompt": SECRET})
    invoke = attributes_of(recorded.span("invoke_agent ok"))
    part = {"type": "text", "content": SECRET}
    assert json.loads(invoke["gen_ai.input.messages"]) == [{"role": "user", "parts": [part]}]
    assert json.loads(invoke["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [part], "finish_reason": "end_turn"}
    ]
    tool = attributes_of(recorded.span("execute_tool search"))
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"query": SECRET}
    assert json.loads(tool["gen_ai.tool.call.result"]) == [SECRET]


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ("hello", [("user", "hello")]),
        ({"prompt": "hello"}, [("user", "hello")]),
        ({"command": ["ls", "-l"]}, [("user", '{"command":["ls","-l"]}')]),
        (
            {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": [{"a": 1}]}]},
            [("system", "be kind"), ("user", '[{"a":1}]')],
        ),
        ({"messages": [{"tool": "x"}, "odd"]}, [("user", '{"tool":"x"}'), ("user", "odd")]),
        ({"messages": [{"role": "tool", "id": 1}]}, [("tool", '{"id":1}')]),
        ({"messages": 5}, [("user", '{"messages":5}')]),
        (None, [("user", "null")]),
    ],
)
def test_any_input_has_messages(given: object, messages: list[tuple[str, str]]) -> None:
    assert json.loads(content.input_messages(given)) == [
        {"role": role, "parts": [{"type": "text", "content": text}]} for role, text in messages
    ]


@pytest.mark.parametrize(
    ("output", "text"),
    [({"content": "hi", "exit_code": 0}, "hi"), ("hi", "hi"), ({"a": 1}, '{"a":1}'), ([1], "[1]")],
)
def test_any_output_has_a_message(output: object, text: str) -> None:
    (message,) = json.loads(content.output_messages(output, None))
    assert message["parts"] == [{"type": "text", "content": text}]
    assert message["finish_reason"] == "stop"


def test_content_has_a_bound(recorded: Recorded, captured: None) -> None:
    run = Run.new(session_id="s", input={"prompt": "x" * 1_000_000})
    observer().run(run, "a").abandoned()
    told = attributes_of(recorded.span("invoke_agent a"))["gen_ai.input.messages"]
    assert len(told) < content.MAX_CHARS + 200
    assert json.loads(told)[0]["parts"][0]["content"].endswith("x…")


@pytest.mark.parametrize(
    ("value", "is_on"),
    [
        (None, False),
        ("", False),
        ("false", False),
        ("NO_CONTENT", False),
        ("EVENT_ONLY", False),
        ("true", True),
        ("SPAN_ONLY", True),
        ("span_and_event", True),
    ],
)
def test_the_environment_says_what_it_is_at_the_start(
    monkeypatch: pytest.MonkeyPatch, value: str | None, is_on: bool
) -> None:
    name = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    told = python("from asm_runtime.telemetry import content; print(content.is_captured())")
    assert told == f"{is_on}\n"
