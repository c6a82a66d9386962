"""A run that goes on in another process: real processes, one SQLite file."""

from __future__ import annotations

import textwrap
from pathlib import Path

from asm_runtime import SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.stores import SQLSessionStore
from tests.telemetry.recorded import Recorded, attributes_of, is_child_of
from tests.telemetry.test_instrumentation import python

SUBMITTER = """
import asyncio, os
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from asm_runtime import SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.adapters.scripted import Gate
from asm_runtime.stores import SQLSessionStore

trace.set_tracer_provider(TracerProvider())

async def main():
    store = await SQLSessionStore({url!r}).start()
    gate = Gate()
    server = await SessionServer(
        store=store, adapter=ScriptedAdapter([gate]), session_opts={{"agent_id": "tester"}}
    ).start()
    with trace.get_tracer("application").start_as_current_span("request") as request:
        first = await server.submit_run({{"prompt": "hello"}})
        second = await server.submit_run({{"prompt": "hello"}})
    await gate.reached()
    context = request.get_span_context()
    print(server.session_id, first, second, context.trace_id, context.span_id, flush=True)
    os._exit(0)

asyncio.run(main())
"""


async def test_a_run_that_goes_on_in_another_process_is_linked_to_its_submitter(
    recorded: Recorded, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/sessions.db"
    session_id, orphan, queued, trace_id, span_id = python(textwrap.dedent(SUBMITTER).format(url=url)).split()
    async with (
        SQLSessionStore(url) as store,
        SessionServer(
            store=store, adapter=ScriptedAdapter([]), session_id=session_id, on_orphan="requeue"
        ) as server,
    ):
        await server.await_run(orphan)
        await server.await_run(queued)
    spans = {attributes_of(span)["asm.run.id"]: span for span in recorded.spans("invoke_agent tester")}
    for run_id, attempt in ((orphan, 2), (queued, 1)):
        invoke = spans[run_id]
        assert invoke.parent is None
        assert [(link.context.trace_id, link.context.span_id) for link in invoke.links] == [
            (int(trace_id), int(span_id))
        ]
        assert attributes_of(invoke)["asm.run.attempt"] == attempt
    # Only the first attempt has waited since the submission.
    assert is_child_of(recorded.span("asm.run.queued"), spans[queued])


async def test_the_commits_of_a_file_are_measured(recorded: Recorded, tmp_path: Path) -> None:
    async with (
        SQLSessionStore(f"sqlite:///{tmp_path}/sessions.db") as store,
        SessionServer(store=store, adapter=ScriptedAdapter(), session_opts={"agent_id": "tester"}) as server,
    ):
        await server.execute_run({"prompt": "one two three"})
        events = await store.get_events(server.session_id)
    assert recorded.value("asm.store.appended_events") == len(events)
    assert recorded.histogram("asm.store.commit.events").sum == len(events)
    assert recorded.histogram("asm.store.commit.requests").count >= 1
