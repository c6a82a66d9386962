"""The shell adapter under the runtime: what ends a run ends its processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from asm_runtime import SessionServer
from asm_runtime.adapters import ShellAdapter
from asm_runtime.errors import PolicyViolation, ProviderError, RunCancelled, RunTimeout
from asm_runtime.records import RunStatus
from asm_runtime.stores import InMemorySessionStore
from tests.adapters.conftest import Footprint

GROUP = (
    "sleep 1000 & timeout 1000 sh -c 'sleep 1000 & sleep 1000' & "
    "cd / && timeout 1000 sh -c 'echo ready; sleep 1000'"
)


@pytest.fixture
async def server(footprint: Footprint) -> AsyncIterator[SessionServer]:
    shell = ShellAdapter(env=footprint.env, interrupt_grace_ms=0, terminate_grace_ms=0, drain_grace_ms=0)
    async with (
        InMemorySessionStore() as store,
        SessionServer(store=store, adapter=shell, session_opts={"agent_id": "tests"}) as server,
    ):
        yield server


async def begun(server: SessionServer) -> str:
    """A run whose processes are there."""
    run_id = await server.submit_run({"command": GROUP})
    async with server.subscribe(run_id=run_id, type="message_streamed") as lines:
        async for _ in lines:
            return run_id
    raise AssertionError("the run ended before its first line")


async def status_of(server: SessionServer, run_id: str) -> RunStatus:
    runs = await server.manager.get_session_runs(server.session_id)
    return next(run.status for run in runs if run.id == run_id)


async def test_a_command_that_succeeds_completes_its_run(server: SessionServer) -> None:
    result = await server.execute_run({"command": "echo hello"})
    assert result.output["content"] == "hello\n"
    assert result.stop_reason == "exit_code_0"
    assert {"pid", "cwd", "command"} <= result.provider_metadata.keys()
    events = await server.manager.get_session_events(server.session_id, run_id=result.run_id)
    assert [str(event.type) for event in events] == [
        "run_started",
        "tool_call_started",
        "message_streamed",
        "tool_call_completed",
        "run_completed",
    ]


async def test_a_command_that_fails_fails_its_run(server: SessionServer) -> None:
    with pytest.raises(ProviderError, match="code 3") as caught:
        await server.execute_run({"command": "echo why >&2; exit 3"})
    assert (caught.value.details["exit_code"], caught.value.details["stderr"]) == (3, "why\n")
    assert caught.value.run_id is not None
    assert await status_of(server, caught.value.run_id) is RunStatus.FAILED


async def test_a_cancelled_run_leaves_no_process_behind(server: SessionServer, footprint: Footprint) -> None:
    run_id = await begun(server)
    await server.cancel_run(run_id)
    assert footprint.processes() == []
    with pytest.raises(RunCancelled):
        await server.await_run(run_id)
    assert await status_of(server, run_id) is RunStatus.CANCELLED


async def test_a_run_that_takes_too_long_leaves_no_process_behind(
    server: SessionServer, footprint: Footprint
) -> None:
    with pytest.raises(RunTimeout):
        await server.execute_run({"command": GROUP}, run_timeout_ms=50)
    assert footprint.processes() == []


async def test_a_server_that_stops_leaves_no_process_behind(
    server: SessionServer, footprint: Footprint
) -> None:
    await begun(server)
    await server.stop()
    assert footprint.processes() == []


async def test_a_forbidden_command_fails_its_run_and_nothing_is_executed(footprint: Footprint) -> None:
    shell = ShellAdapter(denied_commands=["id"], env=footprint.env)
    async with (
        InMemorySessionStore() as store,
        SessionServer(store=store, adapter=shell, session_opts={"agent_id": "tests"}) as server,
    ):
        with pytest.raises(PolicyViolation) as caught:
            await server.execute_run({"command": "echo hi; id -u"})
        assert caught.value.code == "policy_violation"
        events = await server.manager.get_session_events(server.session_id, type="message_streamed")
        assert events == []
