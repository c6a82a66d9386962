"""Every example, run as its docstring says, in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run_example(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=folder,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested_here() -> None:
    here = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in here


def test_the_examples_docstrings_say_how_to_run_them() -> None:
    for example in EXAMPLES.glob("*.py"):
        assert f"python examples/{example.name}" in example.read_text()


def test_spawned_sessions_do_their_work_and_are_kept(tmp_path: Path) -> None:
    first = run_example("spawn_sessions.py", tmp_path)
    assert first.count("completed") == 6
    assert "greeter  completed  hello again" in first
    assert first.endswith("3 sessions in spawned.db\n")
    assert run_example("spawn_sessions.py", tmp_path).endswith("6 sessions in spawned.db\n")


def test_a_resumed_subscription_sees_each_event_once(tmp_path: Path) -> None:
    shown = run_example("resume_subscription.py", tmp_path)
    assert "left at 5\n" in shown
    assert shown.endswith("each event once, in order\n")


def test_the_console_shows_the_spans_of_a_run_below_the_services_own(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run_example("otel_console.py", tmp_path).splitlines()]
    spans = {line["name"]: line for line in lines if "parent_id" in line}
    request = spans["a request of my service"]
    assert spans["invoke_agent traced"]["context"]["trace_id"] == request["context"]["trace_id"]
    assert "asm.run.execute" in spans


# -- the Starlette service


@contextmanager
def service(folder: Path) -> Generator[str]:
    """The service in a process of its own, on a port that was free; yields its address."""
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "starlette_service.py"), "0"],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield found[0]
                    break
            else:
                pytest.fail("the service did not start")
        finally:
            process.terminate()
            process.stderr.read()


async def numbers_until_terminal(client: httpx.AsyncClient, session_id: str, after: int | None) -> list[int]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    numbers: list[int] = []
    async with client.stream("GET", f"/sessions/{session_id}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                numbers.append(int(line.removeprefix("id: ")))
            if line == "event: run_completed":
                break
    return numbers


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    with service(tmp_path) as address:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            yield client


async def test_a_session_is_streamed_and_resumed_by_last_event_id(client: httpx.AsyncClient) -> None:
    session_id = (await client.post("/sessions", json={"agent_id": "web"})).json()["session_id"]
    accepted = await client.post(f"/sessions/{session_id}/runs", json={"command": "echo one; echo two"})
    assert accepted.status_code == 202
    seen = await numbers_until_terminal(client, session_id, None)
    assert seen == list(range(1, len(seen) + 1))
    assert await numbers_until_terminal(client, session_id, 3) == seen[3:]


async def test_a_repeated_request_with_the_same_key_is_the_same_run(client: httpx.AsyncClient) -> None:
    session_id = (await client.post("/sessions", json={"agent_id": "web"})).json()["session_id"]
    key = {"Idempotency-Key": "mine"}
    for _ in range(2):
        answer = await client.post(f"/sessions/{session_id}/runs", json={"command": "true"}, headers=key)
        assert answer.json() == {"run_id": "mine"}
    other = await client.post(f"/sessions/{session_id}/runs", json={"command": "false"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


async def test_the_service_explains_what_it_refuses(client: httpx.AsyncClient) -> None:
    answer = await client.get("/sessions/nobody/events")
    assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")


async def test_a_session_outlives_its_service(tmp_path: Path) -> None:
    with service(tmp_path) as address:
        async with httpx.AsyncClient(base_url=address) as client:
            session_id = (await client.post("/sessions", json={"agent_id": "web"})).json()["session_id"]
            await client.post(f"/sessions/{session_id}/runs", json={"command": "echo before"})
            before = await numbers_until_terminal(client, session_id, None)
    with service(tmp_path) as address:
        async with httpx.AsyncClient(base_url=address) as client:
            await client.post(f"/sessions/{session_id}/runs", json={"command": "echo after"})
            after = await numbers_until_terminal(client, session_id, before[-1])
    assert after == list(range(before[-1] + 1, after[-1] + 1))
