"""The demo's story: two processes, one killed; a third, this one, watches."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from asm_runtime.cli.demo.checks import Witness, checked
from asm_runtime.cli.demo.plan import SUBSCRIBED, plan
from asm_runtime.cli.demo.view import View
from asm_runtime.cli.demo.worker import LEAVES_AFTER, Order, Report
from asm_runtime.cli.exits import ExitCode
from asm_runtime.cli.log import following
from asm_runtime.cli.store_option import make_folder
from asm_runtime.errors import AsmError, ValidationError
from asm_runtime.records import Event, EventType, RunStatus
from asm_runtime.stores import SQLSessionStore

__all__ = ["demo"]

TIME_LIMIT_S = 55

COMPLETED_AT_KILL = 4
IN_FLIGHT_AT_KILL = 4
"""The kill comes when this many runs have completed and this many are in flight."""


async def demo(file: str | None) -> ExitCode:
    """Play it, check what happened against the log, and say what was seen.

    Args:
        file: Where to make the store; None: in a new temporary folder. It is left there.
    """
    if sys.platform == "win32":
        raise ValidationError("the demo runs shell commands and kill -9: it needs a POSIX system")
    path = _fresh_file(file)
    director = _Director(f"sqlite:///{path}")
    results = await director.play()
    director.view.results(results)
    director.view.text("What you just saw", _SEEN)
    director.view.text("Go on with", _next_commands(path))
    return ExitCode.DONE if all(passed for passed, _ in results) else ExitCode.FAILED


_SEEN = (
    "A supervisor served three sessions from one SQLite file. Their runs, real shell commands, waited",
    "in a durable queue and went through two slots a session; every line they printed was an event in",
    "the session's log before anybody was shown it.",
    "Then the process that did the work was killed with kill -9. The second process knew at once that",
    "it was dead, queued its runs again in their old places and went on with the queue: each run was",
    "seen through, and its log shows one end.",
    "A reader of a log needs to keep nothing but its cursor: the subscriber that left came back at its",
    "cursor in another process, and the view, which only reads the file, missed nothing.",
)


class _Director:
    def __init__(self, url: str) -> None:
        self._url = url
        self._planned = plan()
        self.view = View({session_id: [run.run_id for run in of] for session_id, of in self._planned.items()})
        self._seen: dict[str, list[int]] = {session_id: [] for session_id in self._planned}
        self._subscriber_saw: list[int] = []
        self._running: set[tuple[str, str | None]] = set()
        self._completed = 0
        loop = asyncio.get_running_loop()
        self._ripe: asyncio.Future[None] = loop.create_future()
        self._taken_over: asyncio.Future[None] = loop.create_future()

    async def play(self) -> list[tuple[bool, str]]:
        """The checks, after all is done."""
        try:
            async with asyncio.timeout(TIME_LIMIT_S):
                return await self._play()
        except TimeoutError:
            raise AsmError(f"the demo is not done after {TIME_LIMIT_S} s") from None

    async def _play(self) -> list[tuple[bool, str]]:
        async with SQLSessionStore(self._url) as store:
            with self.view:
                async with (
                    _Worker(self._url, self._reported) as first,
                    _Worker(self._url, self._reported) as second,
                    asyncio.TaskGroup() as group,
                ):
                    self.view.news(f"process {first.pid} serves, process {second.pid} stands by")
                    for session_id in self._planned:
                        group.create_task(self._watch(store, session_id))
                    await first.order(Order(is_first=True))
                    await first.alive_until(self._ripe)
                    witness = await self._kill(store, first, second)
            return await checked(store, self._planned, witness)

    async def _kill(self, store: SQLSessionStore, first: _Worker, second: _Worker) -> Witness:
        left_at = self._subscriber_saw[-1]
        killed_at = time.monotonic()
        await first.kill()
        interrupted = {
            (session_id, run.id)
            for session_id in self._planned
            for run in await store.list_runs(session_id, status=RunStatus.RUNNING)
        }
        self.view.news(f"kill -9 {first.pid}: {len(interrupted)} runs were in flight", "bold red")
        await second.order(Order(is_first=False, cursor=left_at))
        await second.alive_until(self._taken_over)
        takeover_ms = (time.monotonic() - killed_at) * 1000
        self.view.news(f"process {second.pid} has taken over, after {takeover_ms:.0f} ms", "bold green")
        self.view.news(f"the subscriber of {SUBSCRIBED} comes back at its cursor, {left_at}")
        await second.alive_until(second.done)
        return Witness(
            seen=self._seen,
            subscriber_saw=self._subscriber_saw,
            left_at=left_at,
            interrupted=interrupted,
            takeover_ms=takeover_ms,
        )

    async def _watch(self, store: SQLSessionStore, session_id: str) -> None:
        """Show a session's log as it grows, until the session has ended."""
        async for events in following(store, session_id):
            for event in events:
                self._shown(event)
            if events[-1].type is EventType.SESSION_COMPLETED:
                return

    def _shown(self, event: Event) -> None:
        self._seen[event.session_id].append(event.sequence_number or 0)
        self.view.event(event)
        if event.type is EventType.RUN_STARTED:
            self._running.add((event.session_id, event.run_id))
            if event.data["attempt"] > 1:
                _fire(self._taken_over)
        elif event.is_terminal:
            self._running.discard((event.session_id, event.run_id))
            self._completed += 1
        self._see_whether_ripe()

    def _reported(self, report: Report) -> None:
        if report.saw is not None:
            self._subscriber_saw.append(report.saw)
            if len(self._subscriber_saw) == LEAVES_AFTER:
                self.view.news(f"the subscriber of {SUBSCRIBED} leaves at {report.saw}")
            self._see_whether_ripe()

    def _see_whether_ripe(self) -> None:
        """Ready for the kill: the subscriber has left, runs have completed, others are in flight."""
        if (
            len(self._subscriber_saw) >= LEAVES_AFTER
            and self._completed >= COMPLETED_AT_KILL
            and len(self._running) >= IN_FLIGHT_AT_KILL
        ):
            _fire(self._ripe)


class _Worker:
    """A child process that serves when it is told to; it is ready when `async with` is entered."""

    def __init__(self, url: str, on_report: Callable[[Report], None]) -> None:
        self._url = url
        self._on_report = on_report
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "asm_runtime.cli.demo.worker", self._url,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then ends it
        )  # fmt: skip
        self._reading = asyncio.ensure_future(self._read())
        await self.alive_until(self._ready)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def order(self, order: Order) -> None:
        """Have it serve."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        await self._process.stdin.drain()

    async def alive_until(self, moment: asyncio.Future[None]) -> None:
        """Wait for a moment that does not come if the process ends before."""
        await asyncio.wait((moment, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if not moment.done():
            code = await self._process.wait()
            raise AsmError(f"process {self.pid} of the demo ended before its time, with exit code {code}")

    async def kill(self) -> None:
        """kill -9, and wait until it is gone. Idempotent."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            report = msgspec.json.decode(line, type=Report)
            if report.ready:
                _fire(self._ready)
            if report.done:
                _fire(self.done)
            self._on_report(report)
        _fire(self._ended)


def _fire(moment: asyncio.Future[None]) -> None:
    if not moment.done():
        moment.set_result(None)


def _fresh_file(file: str | None) -> Path:
    if file is None:
        return Path(tempfile.mkdtemp(prefix="asm-demo-")) / "demo.db"
    path = Path(file)
    if path.exists():
        raise ValidationError(f"{path} is there already: the demo makes a fresh store")
    make_folder(path.parent)
    return path


def _next_commands(path: Path) -> list[str]:
    """As they can be pasted in the shell that started this one."""
    command, store = _how_called(), shlex.quote(str(path))
    return [
        f"{command} sessions --store {store}",
        f"{command} runs {SUBSCRIBED} --store {store}",
        f"{command} events {SUBSCRIBED} --store {store} --type run_started --type run_completed",
        f"{command} tail hasher --store {store} --lines 5   # Ctrl-C leaves",
        f"{command} run --store {store} 'date; uname -a'",
        f"{command} export searcher --store {store} | head -n 3",
    ]


def _how_called() -> str:
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m asm_runtime"
    if shutil.which("asm-runtime") == str(Path(called).absolute()):
        return "asm-runtime"
    return shlex.quote(called)
