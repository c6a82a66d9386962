"""Processes that fork while databases are open.

Run as `python -m tests.stores.sql.sqlite.forking SCENARIO FILE`: says what it found as one JSON value, the
last line of its output. Python warns of forks of a process with threads; here they are the point.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from asm_runtime import Event, Run
from asm_runtime.errors import AsmError
from asm_runtime.stores import SQLSessionStore
from asm_runtime.stores.sql.sqlite import forks, opening

warnings.simplefilter("ignore", DeprecationWarning)

Job = Callable[[], Coroutine[Any, Any, Any]]


def event(session_id: str = "s") -> Event:
    return Event.new(type="custom", session_id=session_id)


def url(file: str) -> str:
    return f"sqlite:///{file}"


async def outcome(of: Coroutine[Any, Any, Any]) -> list[str]:
    try:
        await of
    except AsmError as error:
        return [type(error).__name__, str(error)]
    except BaseException as error:
        return ["not ours", repr(error)]
    return ["ok", ""]


async def opened(target: str | AsyncEngine, appends: int = 1) -> None:
    """Open a store, append, stop it."""
    async with SQLSessionStore(target) as store:
        for _ in range(appends):
            await store.append_event(event())


class Child:
    """A forked child that runs a job in a loop of its own, says what came of it, and ends.

    Args:
        job: What to do.
        user: Who does it, instead of root.
    """

    def __init__(self, job: Job, user: int | None = None) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            said = json.dumps(asyncio.run(job())).encode()
            os.write(writer, said)
            os._exit(0)
        os.close(writer)
        self._reader = reader

    def said(self) -> Any:
        with open(self._reader, "rb") as said:
            found = said.read()
        os.waitpid(self.pid, 0)
        return json.loads(found) if found else "killed"


def outsider(file: str, *command: str) -> list[str]:
    """Another process on the file, which forked from nobody."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.stores.sql.node", file, *command], capture_output=True, text=True
    )
    return found.stdout.split()


async def of_its_own(file: str) -> dict[str, Any]:
    """The child opens the file that its parent has open, whatever it opens it by."""
    os.symlink(file, f"{file}-link")
    async with SQLSessionStore(url(file)) as store:
        await store.append_event(event())
        engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
        children = [
            Child(lambda: outcome(opened(url(file)))),
            Child(lambda: outcome(opened(url(f"{file}-link")))),
            Child(lambda: outcome(opened(engine))),
        ]
        said = [await asyncio.to_thread(child.said) for child in children]
        await store.append_event(event())
        return {"children": said, "numbers": [one.sequence_number for one in await store.get_events("s")]}


async def inherited(file: str) -> list[Any]:
    """The child uses the store that it inherited, in every way."""
    async with SQLSessionStore(url(file)) as store:
        await store.append_event(event())
        await store.enqueue_run(Run.new(session_id="s", id="r"))
        run = await store.claim_run("s")
        assert run is not None
        waiting = asyncio.create_task(store.get_events("s", after=1, wait_timeout_ms=60_000))
        await asyncio.sleep(0)

        async def use() -> list[Any]:
            found = [
                await outcome(call)
                for call in (
                    store.append_event(event()),
                    store.get_events("s"),
                    store.get_events("s", after=1, wait_timeout_ms=60_000),
                    store.claim_run("s"),
                    store.release_run(run.fence),
                    store.list_orphaned_runs(),
                    store.wait_for_runs("s", timeout_ms=60_000),
                    store.start(),
                )
            ]
            return [*found, await outcome(store.stop())]

        said = await asyncio.to_thread(Child(use).said)
        await store.append_event(event())
        assert [one.sequence_number for one in await waiting] == [2]
        return [*said, await store.list_orphaned_runs()]


def at_the_end(file: str, target: str) -> list[int]:
    """A child ends in the ordinary way, with all that it inherited, after another process was killed.

    By then the parent has stopped its store, and the log is that of the process that was killed.
    """
    loop = asyncio.new_event_loop()
    made: Any = create_async_engine(f"sqlite+aiosqlite:///{file}") if target == "engine" else url(file)
    store = SQLSessionStore(made)
    loop.run_until_complete(store.start())
    loop.run_until_complete(store.append_event(event()))
    loop.run_until_complete(store.get_events("s"))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        del store, made
        gc.collect()
        sys.exit(0)  # and whatever the interpreter frees then
    loop.run_until_complete(store.stop())
    if target == "engine":
        loop.run_until_complete(made.dispose())
    assert outsider(file, "append-and-die", "s", "last") == []
    os.close(writer)
    _, status = os.waitpid(child, 0)
    left = sqlite3.connect(file)
    numbers = [number for (number,) in left.execute("SELECT sequence_number FROM asm_events ORDER BY 1")]
    left.close()
    return [os.waitstatus_to_exitcode(status), *numbers]


async def under_load(file: str) -> dict[str, Any]:
    """Fork again and again while SQLite is at work; the children use databases of their own.

    Without a rest before the fork, 1 child in 30 finds a mutex of SQLite locked for ever.
    """
    async with SQLSessionStore(url(file), synchronous="NORMAL") as store:
        appended = [0, 0]
        stopped = False

        async def append(which: int) -> None:
            while not stopped:
                batch = [event(f"s{which}").replace(data={"text": "x" * 3000}) for _ in range(50)]
                await store.append_events(batch)
                appended[which] += len(batch)

        async def read(which: int) -> None:
            while not stopped:
                await store.get_events(f"s{which}", limit=50)

        load = [asyncio.create_task(work(which)) for work in (append, read) for which in range(2)]

        def fork_often() -> list[int]:
            statuses: list[int] = []
            for _ in range(40):
                child = os.fork()
                if child == 0:
                    sqlite3.connect(":memory:").execute("CREATE TABLE t (x)")
                    os._exit(0)
                statuses.append(os.waitpid(child, 0)[1])
            return statuses

        statuses = await asyncio.to_thread(fork_often)
        own = await asyncio.to_thread(Child(lambda: outcome(opened(url(f"{file}-own")))).said)
        stopped = True
        await asyncio.gather(*load)
        stored = [await store.get_latest_sequence(f"s{which}") for which in range(2)]
        return {"statuses": statuses, "own": own, "lost": sum(appended) - sum(stored)}


async def while_opening(file: str) -> bool:
    """Fork while the file is being made; whether others can prepare it, while the child lives."""
    making, go_on = threading.Event(), threading.Event()
    upgrade_on = opening.upgrade_on

    def slow(connection: sqlite3.Connection) -> None:
        making.set()
        go_on.wait()
        upgrade_on(connection)

    opening.upgrade_on = slow
    forks.REST_SECONDS = 0.1  # it does not go on before the fork
    store = SQLSessionStore(url(file))
    starting = asyncio.create_task(store.start())
    await asyncio.to_thread(making.wait)
    child = os.fork()
    if child == 0:
        signal.pause()
    go_on.set()
    await starting
    free = await asyncio.to_thread(lock_is_free, f"{file}-nodes/opening")
    os.kill(child, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, child, 0)
    await store.stop()
    return free


def lock_is_free(path: str) -> bool:
    return subprocess.run(["flock", "-n", path, "true"]).returncode == 0


async def grandchild(file: str) -> dict[str, Any]:
    """The child opens a file of its own and forks in turn, from a thread."""
    async with SQLSessionStore(url(file)) as store:
        await store.append_event(event())

        async def middle() -> Any:
            async with SQLSessionStore(url(f"{file}-own")) as own:
                await own.append_event(event())

                def fork() -> Any:
                    files = [file, f"{file}-own", f"{file}-new"]

                    async def youngest() -> Any:
                        return [await outcome(opened(url(each))) for each in files]

                    return Child(youngest).said()

                found = await asyncio.to_thread(fork)
                await own.append_event(event())
                return [*found, [one.sequence_number for one in await own.get_events("s")]]

        *found, numbers = await asyncio.to_thread(Child(middle).said)
        return {"grandchild": found, "numbers of the child": numbers}


async def connections_of_others(file: str) -> list[Any]:
    """The application itself has the file open at the fork, or has had it open before."""
    await opened(url(file))
    connection = sqlite3.connect(file)
    connection.execute("SELECT count(*) FROM asm_events").fetchall()
    with_it = await asyncio.to_thread(Child(lambda: outcome(opened(url(file)))).said)
    connection.close()
    without = await asyncio.to_thread(Child(lambda: outcome(opened(url(file)))).said)
    return [with_it, without]


async def engines(file: str) -> list[Any]:
    """Engines that were in use at the fork, by a store or not, and one that was not."""
    used, in_memory = (
        create_async_engine(f"sqlite+aiosqlite:///{file}"),
        create_async_engine("sqlite+aiosqlite://"),
    )
    of_the_application, unused = (
        create_async_engine("sqlite+aiosqlite://"),
        create_async_engine(f"sqlite+aiosqlite:///{file}-2"),
    )
    async with of_the_application.connect(), SQLSessionStore(used), SQLSessionStore(in_memory):
        said: list[Any] = []
        for engine in (used, in_memory, of_the_application, unused):
            child = Child(lambda engine=engine: outcome(opened(engine)))  # type: ignore[misc]
            said.append(await asyncio.to_thread(child.said))
    for engine in (used, in_memory, of_the_application):
        await engine.dispose()
    return said


async def start_methods(file: str) -> list[Any]:
    """Children of `multiprocessing`, by each way to start one."""
    async with SQLSessionStore(url(file)) as store:
        await store.append_event(event())
        said: list[Any] = []
        for method in ("fork", "spawn", "forkserver"):
            context: Any = multiprocessing.get_context(method)
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=tell_outcome, args=(file, writer))
            process.start()
            said.append(await asyncio.to_thread(reader.recv))
            await asyncio.to_thread(process.join)
        return [*said, await store.get_latest_sequence("s")]


def tell_outcome(file: str, writer: Any) -> None:
    writer.send(asyncio.run(outcome(opened(url(file)))))


async def while_waiting(file: str) -> None:
    """Fork while a thread waits for the lock of another connection, which it may for long."""
    async with SQLSessionStore(url(file), busy_timeout_ms=60_000) as store:
        await store.append_event(event())
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        blocked = asyncio.create_task(store.append_event(event()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        other.execute("ROLLBACK")
        other.close()
        await blocked


SERVICE, STRANGER = 65534, 65533


async def claimed_and_killed(file: str) -> None:
    """Have a node that executes a run die."""
    async with SQLSessionStore(url(file)) as store:
        await store.enqueue_run(Run.new(session_id="s", id="r"))
        await store.claim_run("s")
        os.kill(os.getpid(), signal.SIGKILL)


async def work_of_a_service(file: str) -> list[Any]:
    """What a service does with its database."""
    async with SQLSessionStore(url(file)) as store:
        await store.append_event(event())
        orphans = [run.id for run in await store.list_orphaned_runs(session_id="s")]
        await store.enqueue_run(Run.new(session_id="t"))
        claimed = await store.claim_run("t")
        return [orphans, claimed is not None]


def modes(file: str) -> dict[str, list[Any]]:
    """Owner and mode of the folder of nodes and of each kind of file in it."""
    folder = f"{file}-nodes"
    paths = [folder, *(os.path.join(folder, name) for name in os.listdir(folder) if name != "log")]
    return {
        os.path.basename(path)[:3]: [os.stat(path).st_uid, oct(os.stat(path).st_mode & 0o777)]
        for path in paths
    }


def visit_of_root(folder: str) -> list[Any]:
    """root looks into the database of a service once, and is killed."""
    os.chmod(folder, 0o755)
    os.chown(folder, SERVICE, SERVICE)
    file = f"{folder}/asm.db"
    before = Child(lambda: work_of_a_service(file), SERVICE).said()
    killed = Child(lambda: claimed_and_killed(file)).said()
    found = modes(file)
    after = Child(lambda: work_of_a_service(file), SERVICE).said()
    return [before, killed, found, after]


def files_of_root(folder: str) -> list[Any]:
    """A service finds lock files that it cannot open, of all kinds."""
    os.chmod(folder, 0o755)
    os.chown(folder, SERVICE, SERVICE)
    file = f"{folder}/asm.db"
    os.mkdir(f"{file}-nodes")
    os.chown(f"{file}-nodes", SERVICE, SERVICE)
    node = f"nod_{'0' * 32}"
    for name in ("opening", node):
        os.close(os.open(f"{file}-nodes/{name}", os.O_CREAT, 0o600))

    async def orphans() -> list[Any]:
        async with SQLSessionStore(url(file)) as store:
            unreadable = Run.new(session_id="s", id="r").replace(status="running", owner=node)
            await store.save_run(unreadable)
            return await work_of_a_service(file)

    return list(Child(orphans, SERVICE).said())


def strangers(folder: str) -> Any:
    """A user who may read the database, and no more, tries to hold the lock of a node that dies."""
    os.chmod(folder, 0o755)
    file = f"{folder}/asm.db"
    Child(lambda: claimed_and_killed(file)).said()
    os.chmod(file, 0o644)

    async def lock() -> list[str]:
        opened: list[str] = []
        for name in ["", *(f"-nodes/{name}" for name in ("opening", os.environ["NODE"]))]:
            try:
                os.close(os.open(file + name, os.O_RDONLY))
                opened.append(name)
            except PermissionError:
                pass
        return opened

    (os.environ["NODE"],) = (name for name in os.listdir(f"{file}-nodes") if name.startswith("nod_"))
    return Child(lock, STRANGER).said()


def main(scenario: str, file: str, *more: str) -> Any:
    match scenario:
        case "at_the_end":
            return at_the_end(file, *more)
        case "visit_of_root" | "files_of_root" | "strangers":
            with tempfile.TemporaryDirectory() as elsewhere:  # load all that other users may not read
                asyncio.run(opened(url(f"{elsewhere}/asm.db")))
            return globals()[scenario](os.path.dirname(file))
        case _:
            return asyncio.run(globals()[scenario](file))


if __name__ == "__main__":
    faulthandler.enable()
    print(json.dumps(main(*sys.argv[1:])))
