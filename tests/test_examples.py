"""Every example, run as its docstring says, in a folder of its own."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from asm_runtime import SessionServer
from asm_runtime.adapters import ScriptedAdapter
from asm_runtime.errors import AsmError, StoreUnavailable
from asm_runtime.stores import InMemorySessionStore

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def has(module: str) -> bool:
    """Whether something that an example needs is installed."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # one that it is part of
        return False


def run_example(name: str, folder: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=folder,
        env=os.environ | {"PYTHONWARNINGS": "error"} | env,
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


def test_a_kept_artifact_is_replaced_and_goes_with_its_session(tmp_path: Path) -> None:
    shown = run_example("keep_artifacts.py", tmp_path)
    assert shown.startswith("report.txt: 1200000 bytes, sha256 ")
    assert shown.endswith("listed ['report.txt']\nwith the session gone []\n")


def test_the_console_shows_the_spans_of_a_run_below_the_services_own(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run_example("otel_console.py", tmp_path).splitlines()]
    spans = {line["name"]: line for line in lines if "parent_id" in line}
    request = spans["a request of my service"]
    assert spans["invoke_agent traced"]["context"]["trace_id"] == request["context"]["trace_id"]
    assert "asm.run.execute" in spans


@pytest.mark.skipif(not has("opentelemetry.exporter.otlp.proto.http"), reason="the exporter is not installed")
def test_a_collector_gets_the_spans_and_metrics_of_a_run(tmp_path: Path) -> None:
    got: dict[str, list[bytes]] = {}

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.setdefault(self.path, []).append(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector, ThreadPoolExecutor(1) as serving:
        serving.submit(collector.serve_forever)
        try:
            endpoint = f"http://127.0.0.1:{collector.server_port}"
            shown = run_example("otel_collector.py", tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        finally:
            collector.shutdown()
    assert shown == "completed\n"
    # The names stand as they are in the protobuf.
    spans, metrics = b"".join(got["/v1/traces"]), b"".join(got["/v1/metrics"])
    for name in (b"invoke_agent traced", b"asm.run.queued", b"asm.run.execute", b"execute_tool shell"):
        assert name in spans
    assert b"asm.run.duration" in metrics
    assert b"my-service" in spans
    assert b"echo traced" not in spans + metrics


# -- the services

SERVICES = [
    "starlette_service.py",
    pytest.param(
        "fastapi_service.py",
        marks=pytest.mark.skipif(not has("fastapi"), reason="FastAPI is not installed"),
    ),
]


@contextmanager
def service(name: str, folder: Path) -> Generator[str]:
    """A service in a process of its own, on a port that was free; yields its address.

    Whatever it is sent, its log shows no traceback.
    """
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), "0"],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        log = process.stderr
        assert log is not None
        address = next(
            (found[0] for line in log if (found := re.search(r"http://127\.0\.0\.1:\d+", line))), None
        )
        assert address is not None, "the service did not start"
        with ThreadPoolExecutor(1) as reader:
            rest = reader.submit(log.read)  # a full pipe would hold the service up
            try:
                yield address
            finally:
                process.terminate()
            assert "Traceback" not in rest.result()


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the service of most tests works."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module", params=SERVICES)
def address(request: pytest.FixtureRequest, folder: Path) -> Generator[str]:
    with service(request.param, folder) as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        yield client


async def test_a_session_is_streamed_and_resumed_by_last_event_id(client: httpx.AsyncClient) -> None:
    session_id = await new_session(client)
    accepted = await client.post(f"/sessions/{session_id}/runs", json={"command": "echo one; echo two"})
    assert accepted.status_code == 202
    seen = await numbers_until_terminal(client, session_id, None)
    assert seen == list(range(1, len(seen) + 1))
    assert await numbers_until_terminal(client, session_id, 3) == seen[3:]


async def test_a_repeated_request_with_the_same_key_is_the_same_run(client: httpx.AsyncClient) -> None:
    session_id = await new_session(client)
    key = {"Idempotency-Key": "mine"}  # of this session: another may have a run of that id
    for _ in range(2):
        answer = await client.post(f"/sessions/{session_id}/runs", json={"command": "true"}, headers=key)
        assert answer.json() == {"run_id": "mine"}
    other = await client.post(f"/sessions/{session_id}/runs", json={"command": "false"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize("address", SERVICES[1:], indirect=True)
async def test_a_run_can_be_looked_at_and_cancelled(client: httpx.AsyncClient) -> None:
    session_id = await new_session(client)
    accepted = await client.post(f"/sessions/{session_id}/runs", json={"command": "sleep 600"})
    run = f"/sessions/{session_id}/runs/{accepted.json()['run_id']}"
    assert (await client.get(run)).json()["status"] in ("pending", "running")
    assert (await client.delete(run)).status_code == 204
    ended = (await client.get(run)).json()
    assert (ended["status"], ended["error"]["code"]) == ("cancelled", "run_cancelled")
    missing = await client.get(f"/sessions/{session_id}/runs/nobody")
    assert (missing.status_code, missing.json()["code"]) == (404, "run_not_found")


async def new_session(client: httpx.AsyncClient) -> str:
    return str((await client.post("/sessions", json={"agent_id": "web"})).json()["session_id"])


async def test_the_service_explains_what_it_refuses(client: httpx.AsyncClient) -> None:
    answer = await client.get("/sessions/nobody/events")
    assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")


@pytest.mark.parametrize("name", SERVICES)
async def test_a_session_outlives_its_service(name: str, tmp_path: Path) -> None:
    with service(name, tmp_path) as address:
        async with httpx.AsyncClient(base_url=address) as client:
            session_id = await new_session(client)
            await client.post(f"/sessions/{session_id}/runs", json={"command": "echo before"})
            before = await numbers_until_terminal(client, session_id, None)
    with service(name, tmp_path) as address:
        async with httpx.AsyncClient(base_url=address) as client:
            await client.post(f"/sessions/{session_id}/runs", json={"command": "echo after"})
            after = await numbers_until_terminal(client, session_id, before[-1])
    assert after == list(range(before[-1] + 1, after[-1] + 1))


# -- what must not reach it

PAGE = {"Origin": "https://page.example", "Sec-Fetch-Site": "cross-site"}


@pytest.mark.parametrize(
    "headers",
    [
        PAGE,
        PAGE | {"Content-Type": "text/plain;charset=UTF-8"},  # what a page may send without asking first
        PAGE | {"Content-Type": "application/x-www-form-urlencoded"},
        {"Origin": "https://page.example"},  # a browser without Sec-Fetch
        {"Origin": "null"},  # a sandboxed frame
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},  # another program of this machine
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "page.example"},  # DNS rebinding: the page's own name, this machine's address
        {"Host": "page.example", "Origin": "http://page.example", "Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost.page.example"},
        {"Host": "[::1"},
        {"Host": "user@localhost", "Origin": "https://page.example"},
    ],
)
async def test_a_web_page_can_neither_write_nor_read(
    folder: Path, client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    session_id = await new_session(client)
    body = json.dumps({"command": "touch pwned"})
    headers = {"Content-Type": "application/json"} | headers
    for method, path in (
        ("POST", "/sessions"),
        ("POST", f"/sessions/{session_id}/runs"),
        ("GET", f"/sessions/{session_id}/events"),
        ("OPTIONS", f"/sessions/{session_id}/runs"),
    ):
        answer = await client.request(method, path, content=body, headers=headers)
        assert answer.status_code in (400, 403)
        assert "access-control-allow-origin" not in answer.headers
    await client.post(f"/sessions/{session_id}/runs", json={"command": "echo after"})
    await numbers_until_terminal(client, session_id, None)  # one slot: whatever came before has run
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST"])
async def test_a_page_of_the_service_itself_is_served(client: httpx.AsyncClient, name: str) -> None:
    host = f"{name}:{client.base_url.port}"
    headers = {"Host": host, "Origin": f"http://{host.lower()}", "Sec-Fetch-Site": "same-origin"}
    assert (await client.post("/sessions", json={"agent_id": "a"}, headers=headers)).status_code == 201


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
async def test_what_is_not_sent_as_json_is_refused(client: httpx.AsyncClient, kind: str) -> None:
    answer = await client.post("/sessions", content='{"agent_id": "a"}', headers={"Content-Type": kind})
    assert answer.status_code == 415


async def test_the_content_type_may_have_parameters(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert (await client.post("/sessions", content='{"agent_id": "a"}', headers=headers)).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"5", b"[]", b'"x"', b"{}", b'[["agent_id", "a"]]', b"NaN", b"\xff",
        b"[" * 10_000,  b'{"agent_id": NaN}', b'{"agent_id": null}', b'{"agent_id": 5}', b'{"agent_id": ""}',
        b'{"agent_id": "a\\u0000"}', b'{"agent_id": "\\ud800"}', b'{"agent_id": "%s"}' % (b"a" * 2_000),
        b'{"agent_id": "a", "tags": "b"}', b'{"agent_id": "a", "status": "completed"}',
        b'{"agent_id": "a", "tags": [["b"]]}', b'{"agent_id": "a", "id": []}',
    ],
)  # fmt: skip
async def test_a_session_that_means_nothing_is_the_clients_mistake(
    client: httpx.AsyncClient, body: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/sessions", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[1]", b"{}", b'"ls"', b'{"command": 5}', b'{"command": ["ls", 5]}', b'{"command": null}',
        b'{"command": "ls", "cwd": "/"}', b'{"command": "ls", "timeout_ms": NaN}',
        b'{"command": "ls", "timeout_ms": "1"}', b'{"command": "ls", "timeout_ms": 99999999999999999999}',
    ],
)  # fmt: skip
async def test_a_run_that_means_nothing_is_the_clients_mistake(
    client: httpx.AsyncClient, body: bytes
) -> None:
    session_id = await new_session(client)
    headers = {"Content-Type": "application/json"}
    answer = await client.post(f"/sessions/{session_id}/runs", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["message"]


@pytest.mark.parametrize("last_seen", ["x", "-1", "1.5", "", "9" * 30, "1" * 5_000, "0x1", "1_0"])
async def test_a_cursor_that_is_no_number_is_the_clients_mistake(
    client: httpx.AsyncClient, last_seen: str
) -> None:
    session_id = await new_session(client)
    headers = {"Last-Event-ID": last_seen}
    answer = await client.get(f"/sessions/{session_id}/events", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")


@pytest.mark.parametrize(
    "path", ["/sessions/%00/runs", "/sessions/%ff/runs", "/sessions/" + "s" * 2_000 + "/runs"]
)
async def test_a_session_id_that_can_be_none_is_the_clients_mistake(
    client: httpx.AsyncClient, path: str
) -> None:
    assert (await client.post(path, json={"command": "true"})).status_code in (404, 422)


async def test_a_key_that_cannot_be_a_run_id_is_the_clients_mistake(client: httpx.AsyncClient) -> None:
    session_id = await new_session(client)
    headers = {"Idempotency-Key": "k" * 2_000}
    answer = await client.post(f"/sessions/{session_id}/runs", json={"command": "true"}, headers=headers)
    assert answer.status_code == 422


@pytest.mark.parametrize("told", [True, False], ids=["with its length", "in pieces"])
async def test_a_body_has_a_bound(client: httpx.AsyncClient, told: bool) -> None:
    body = json.dumps({"agent_id": "a", "tags": ["t" * 2_000_000]}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    headers = {"Content-Type": "application/json"}
    answer = await client.post("/sessions", content=body if told else pieces(), headers=headers)
    assert answer.status_code == 413


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_crash(client: httpx.AsyncClient) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
    writer.write(b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 100\r\n\r\n{")
    writer.write_eof()
    await reader.read()
    writer.close()
    await writer.wait_closed()
    assert await new_session(client)  # and whatever it did with the first is in its log


def test_what_the_service_stores_is_its_users_alone(address: str, folder: Path) -> None:
    assert httpx.post(f"{address}/sessions", json={"agent_id": "web"}).status_code == 201
    files = [file for file in folder.rglob("*") if not file.is_symlink()]  # a link has no mode of its own
    assert files
    for file in files:
        assert file.stat().st_mode & 0o077 == 0, file


# -- parts of them, in this process


@pytest.fixture(scope="module", params=SERVICES)
def example(request: pytest.FixtureRequest) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / request.param))


async def test_a_body_that_does_not_come_is_not_waited_for(
    example: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(example["body_of"].__globals__, "BODY_TIMEOUT_S", 0.001)
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/sessions", "query_string": b""}
    scope |= {"headers": headers, "state": {"supervisor": None}}
    await example["app"](scope, asyncio.Event().wait, send)
    assert sent[0]["status"] == 408


async def test_what_a_client_cannot_mend_is_not_explained_to_it(example: dict[str, Any]) -> None:
    request = Request({"type": "http", "method": "GET", "headers": []})
    down = await example["explain"](request, StoreUnavailable("no route to 10.1.2.3", details={"host": "db"}))
    assert (down.status_code, json.loads(down.body)) == (
        503,
        {"code": "storage_connection_failed", "retryable": True},
    )
    assert (await example["explain"](request, AsmError("broken"))).status_code == 500


async def test_a_stream_whose_server_crashes_ends(example: dict[str, Any]) -> None:
    async with InMemorySessionStore() as store:
        server = await SessionServer(
            store=store, adapter=ScriptedAdapter(), session_opts={"agent_id": "web"}
        ).start()
        stream = example["server_sent"](server.subscribe())
        assert (await anext(stream)).startswith("id: 1\nevent: session_created\n")
        server.crash(KeyError("x"))
        assert [piece async for piece in stream if not piece.startswith("id: 2\n")] == []
        await server.stop()
