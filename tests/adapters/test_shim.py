"""The processes between the program and its commands: who starts, adopts and ends them."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.adapters import fork_server, shim
from asm_runtime.adapters import process as process_module
from asm_runtime.adapters.process import ProcessGroup, Stream
from asm_runtime.errors import DependencyMissing, ProviderUnavailable
from asm_runtime.testing import JumpingClock
from tests.adapters.conftest import Footprint
from tests.adapters.test_process import output_of, shell, until_ready

pytestmark = pytest.mark.one_loop  # test_process.py has the loops

PROGRAM = Path(__file__).with_name("runtime_program.py")

NO_SUBREAPER = "sys.platform = 'darwin'"
NO_PIDFD = "del os.pidfd_open"
NO_PROC = """
import builtins
def hidden(function):
    def instead(path, *rest, **options):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return function(path, *rest, **options)
    return instead
os.listdir, builtins.open = hidden(os.listdir), hidden(open)
"""


@pytest.fixture
def new_helpers() -> Iterator[None]:
    """Helpers that no other test has had, nor will have."""
    fork_server._close_everything()
    yield
    fork_server._close_everything()


def cripple(monkeypatch: pytest.MonkeyPatch, folder: Path, *lacks: str) -> None:
    """Let helpers find a system that is not Linux as it should be."""
    lines = ["import os, sys, runpy", *lacks, f"runpy.run_path({shim.__file__!r}, run_name='__main__')"]
    program = folder / "program.py"
    program.write_text("\n".join(lines))
    monkeypatch.setattr(fork_server, "_PROGRAM", program)


@pytest.fixture(
    params=[(), (NO_PIDFD,), (NO_SUBREAPER,), (NO_SUBREAPER, NO_PIDFD, NO_PROC)],
    ids=["linux", "without pidfd", "without subreaper", "without all"],
)
def system(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_helpers: None
) -> str:
    cripple(monkeypatch, tmp_path, *request.param)
    return str(request.node.callspec.id).split("-")[-1]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


# -- nobody gets away

IN_THE_SESSION = [
    "sh -c 'echo ready; sleep 1000'; true",
    "sh -c 'echo ready; sleep 1000' & wait",
    "nohup sh -c 'echo ready; sleep 1000' & wait",
    "cd / && timeout 1000 sh -c 'echo ready; sleep 1000'",
    "timeout 1000 sh -c 'echo ready; sleep 1000' | cat",
    "bash -c 'set -m; sh -c \"echo ready; sleep 1000\" & wait'",
    f"{sys.executable} -c 'import os; os.setpgrp(); os.system(\"echo ready; sleep 1000\")'",
    "(sh -c 'echo ready; sleep 1000' &); sleep 1000",
    "seq 3 | xargs -P3 -I@ sh -c 'sleep 1000 & echo ready; sleep 1000'",
    "trap '' INT TERM HUP; echo ready; while :; do sleep 1000; done",
    "sh -c 'echo ready; kill -STOP $$'; true",
]
"""In the background, orphaned, in groups of their own, deaf, stopped; but none of them left its session."""
OUTSIDE = [
    "setsid sh -c 'echo ready; sleep 1000'; true",
    "setsid -f sh -c 'echo ready; sleep 1000'; sleep 1000",
    "script -qc 'echo ready; sleep 1000' /dev/null",
    f'exec {sys.executable} -c \'print("ready", flush=True)\n'
    "import os\nwhile True:\n  if os.fork(): os._exit(0)'",
]
"""In sessions of their own, one with a terminal; and a chain of processes that fork and exit."""


async def begin_and_leave(script: str, footprint: Footprint) -> None:
    graces = {"interrupt_grace_ms": 20, "terminate_grace_ms": 20, "drain_grace_ms": 0}
    async with shell(script, footprint, **graces) as process:
        piece = await process.read()
        assert piece is not None
        assert piece[1].startswith(b"ready"), script


async def begin_and_exit(script: str, footprint: Footprint) -> None:
    async with shell(f"({script}) & echo $!", footprint, drain_grace_ms=20) as process:
        await output_of(process)
    assert process.returncode == 0


@pytest.mark.usefixtures("system")
async def test_nobody_of_its_session_outlives_a_command_that_is_stopped(footprint: Footprint) -> None:
    await asyncio.gather(*(begin_and_leave(script, footprint) for script in IN_THE_SESSION))
    footprint.assert_nothing_is_left()


@pytest.mark.usefixtures("system")
async def test_nobody_of_its_session_outlives_a_command_that_exits(footprint: Footprint) -> None:
    await asyncio.gather(*(begin_and_exit(script, footprint) for script in IN_THE_SESSION))
    footprint.assert_nothing_is_left()


async def test_on_linux_nobody_at_all_outlives_a_command_that_is_stopped(footprint: Footprint) -> None:
    await asyncio.gather(*(begin_and_leave(script, footprint) for script in OUTSIDE))
    footprint.assert_nothing_is_left()


async def test_a_daemon_outlives_a_command_that_exits_by_itself(footprint: Footprint, tmp_path: Path) -> None:
    life = tmp_path / "life"
    os.mkfifo(life)
    script = f"setsid -f sh -c 'exec >/dev/null 2>&1 3>{life}; echo $$ >&3; sleep 1000'"
    async with shell(script, footprint) as process:
        reading = asyncio.create_task(asyncio.to_thread(life.open, "rb"))
        await output_of(process)
    assert process.returncode == 0
    with await reading as pipe:
        daemon = int(await asyncio.to_thread(pipe.readline))
        assert len(footprint.processes()) == 2
        os.killpg(daemon, signal.SIGKILL)
        await asyncio.to_thread(pipe.read)
    assert footprint.open_files() == set()


async def test_a_daemon_that_holds_the_output_outlives_its_command_and_the_next(
    footprint: Footprint, tmp_path: Path, caplog: pytest.LogCaptureFixture, new_helpers: None
) -> None:
    left = tmp_path / "pid"
    script = f"setsid -f sh -c 'echo $$ >{left}; sleep 1000'; until test -s {left}; do sleep 0.01; done"
    async with shell(script, footprint, drain_grace_ms=0) as process:
        await output_of(process)
    assert process.returncode == 0
    daemon = int(left.read_text())
    handle = os.pidfd_open(daemon)
    await begin_and_leave("echo ready; sleep 1000", footprint)
    assert select.select([handle], [], [], 0)[0] == []  # it lives
    assert caplog.text == ""  # as it may
    os.killpg(daemon, signal.SIGKILL)
    await ended(handle)
    assert footprint.open_files() == set()


async def test_orphans_that_exit_are_reaped_while_the_command_runs(footprint: Footprint) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do (sh -c ': &'); done; echo ready; read line"
    async with shell(script, footprint, stdin=b"") as process:
        await output_of(process)
    script = "for i in 1 2 3 4 5 6 7 8 9; do (sh -c ': &'); done; echo ready; exec sleep 1000"
    async with shell(script, footprint) as process:
        await until_ready(process)
        await until_no_zombies(parent_of(process.pid))
    footprint.assert_nothing_is_left()


async def until_no_zombies(parent: int) -> None:
    def zombies() -> list[str]:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [pid for pid in children if is_zombie(pid)]

    def is_zombie(pid: str) -> bool:
        try:
            return ") Z " in Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):  # reaped between the two looks
            return False

    while zombies():
        await asyncio.sleep(0)


# -- what a command is started with


@pytest.mark.parametrize(
    "setup",
    [
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
        "import signal; [signal.signal(n, signal.SIG_IGN) for n in signal.valid_signals() - {9, 19}]",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    ],
    ids=["interrupt ignored", "all ignored", "all blocked", "children ignored"],
)
async def test_no_signal_is_ignored_or_blocked_whatever_the_program_does(setup: str) -> None:
    said = await said_by(setup, "grep -E 'SigBlk|SigIgn' /proc/self/status; exit 0")
    blocked, ignored = (int(mask, 16) for mask in said.split()[1::2])
    threads_own = 1 << 31 | 1 << 32  # that `posix_spawn` of glibc ignores, until the first thread is made
    assert (blocked, ignored & ~threads_own) == (0, 0)


async def test_a_command_has_the_three_files_and_no_others(footprint: Footprint) -> None:
    with open(os.devnull) as leak:  # noqa: ASYNC230
        os.set_inheritable(leak.fileno(), True)
        fork_server._close_everything()
        async with shell("ls /proc/self/fd", footprint) as process:
            listed = (await output_of(process))[Stream.STDOUT].split()
    assert listed == [b"0", b"1", b"2", b"3"]  # the last is that of the listing


async def test_a_commands_parent_has_no_environment_to_read(
    footprint: Footprint, monkeypatch: pytest.MonkeyPatch, new_helpers: None
) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    async with shell("tr '\\0' '\\n' </proc/$PPID/environ", footprint) as process:
        assert (await output_of(process))[Stream.STDOUT] == b""


async def said_by(setup: str, command: str) -> str:
    program = [sys.executable, str(PROGRAM), setup, command]
    running = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE)
    said, _ = await running.communicate()
    assert running.returncode == 0
    return said.decode()


# -- the program dies


@pytest.mark.usefixtures("footprint")
@pytest.mark.parametrize("escape", ["exec", "timeout 1000", "setsid", "nohup"])
async def test_a_program_that_is_killed_takes_its_commands_with_it(escape: str, tmp_path: Path) -> None:
    life = tmp_path / "life"
    os.mkfifo(life)
    command = f"{escape} sh -c 'exec 3>{life}; sleep 1000 & echo ready >&3; sleep 1000' & wait"
    running = await asyncio.create_subprocess_exec(sys.executable, str(PROGRAM), "", command)
    with await asyncio.to_thread(life.open, "rb") as pipe:
        assert await asyncio.to_thread(pipe.readline) == b"ready\n"
        running.kill()
        assert await asyncio.to_thread(pipe.read) == b""  # everybody who held it has gone
    await running.wait()


async def test_a_program_that_has_forked_takes_its_commands_with_it_too(tmp_path: Path) -> None:
    life, fork = tmp_path / "life", tmp_path / "fork"
    os.mkfifo(life)
    os.mkfifo(fork)
    setup = f"""
import os, threading
def fork():
    with open({str(fork)!r}) as told:
        told.read()
    if os.fork() == 0:
        open({str(fork)!r}, "w").write("forked")
        open({str(fork)!r}).read()
        os._exit(0)
threading.Thread(target=fork, daemon=True).start()
"""
    command = f"exec 3>{life}; echo ready >&3; sleep 1000"
    running = await asyncio.create_subprocess_exec(sys.executable, str(PROGRAM), setup, command)
    with await asyncio.to_thread(life.open, "rb") as pipe:
        assert await asyncio.to_thread(pipe.readline) == b"ready\n"
        await asyncio.to_thread(fork.write_text, "go")
        assert await asyncio.to_thread(fork.read_text) == "forked"
        running.kill()
        assert await asyncio.to_thread(pipe.read) == b""
    await running.wait()
    await asyncio.to_thread(fork.write_text, "end")


async def test_a_forked_child_has_helpers_of_its_own(footprint: Footprint) -> None:
    setup = "import os\nif os.fork():\n  os.wait()"
    assert await said_by(setup, "echo one") == "one\none\n"
    setup = """
import asyncio, os
asyncio.run(main("echo warm"))
if os.fork() == 0:
    pass
else:
    os.wait()
"""
    assert await said_by(setup, "echo one") == "warm\none\none\n"


# -- one at a time of each name


async def test_a_process_that_waits_begins_when_nobody_of_its_name_is_left(
    footprint: Footprint, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    async def second() -> None:
        async with shell(f"echo began >>{log}", footprint, name="a", waits=True) as process:
            await output_of(process)

    script = f"trap 'echo ended >>{log}; exit' INT; echo ready; while :; do sleep 0.01; done"
    async with shell(script, footprint, name="a") as process:
        await until_ready(process)
        waiting = asyncio.create_task(second())
        async with shell("true", footprint, name="b", waits=True) as another:
            await output_of(another)
        async with shell("true", footprint, name="a") as another:  # who does not wait is not held up
            await output_of(another)
    await waiting
    assert log.read_text() == "ended\nbegan\n"
    footprint.assert_nothing_is_left()


async def test_a_process_that_waits_in_vain_is_not_started(
    footprint: Footprint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_helpers: None
) -> None:
    impatient = tmp_path / "impatient.py"
    patient = Path(shim.__file__).read_text()  # noqa: ASYNC240
    impatient.write_text(patient.replace("DEATH_S = 5.0", "DEATH_S = 0.02"))
    monkeypatch.setattr(fork_server, "_PROGRAM", impatient)
    async with shell("echo ready; sleep 1000", footprint, name="a", interrupt_grace_ms=0) as process:
        await until_ready(process)
        with pytest.raises(ProviderUnavailable, match="earlier attempt"):
            async with shell("true", footprint, name="a", waits=True):
                pass
    footprint.assert_nothing_is_left()


async def test_a_process_that_waits_can_be_cancelled(footprint: Footprint) -> None:
    async def second() -> None:
        async with shell("true", footprint, name="a", waits=True):
            pass

    async with shell("echo ready; sleep 1000", footprint, name="a", interrupt_grace_ms=0) as process:
        await until_ready(process)
        waiting = asyncio.create_task(second())
        for _ in range(20):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    footprint.assert_nothing_is_left()


async def test_a_name_is_free_when_its_owner_is_killed(footprint: Footprint) -> None:
    for _ in range(2):
        async with shell("echo ready; sleep 1000", footprint, name="a", waits=True) as process:
            await until_ready(process)
            os.kill(parent_of(process.pid), signal.SIGKILL)
            while await process.read() is not None:
                pass
    footprint.assert_nothing_is_left()


# -- helpers die


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
async def test_helpers_do_not_go_when_all_processes_of_a_service_are_asked_to(
    footprint: Footprint, number: signal.Signals
) -> None:
    async with shell("exit 3", footprint) as process:
        await output_of(process)  # the server has had the time to start
        server = fork_server._server
        assert server is not None
        os.kill(server._pid, number)
        async with shell("kill -TERM $PPID; kill -INT $PPID; exit 4", footprint) as another:
            await output_of(another)
    assert (process.returncode, another.returncode) == (3, 4)
    assert fork_server._server is server


async def test_where_the_shim_is_killed_its_command_ends_and_nobody_knows_how(footprint: Footprint) -> None:
    script = "timeout 1000 sh -c 'echo ready; sleep 1000' & wait"
    async with shell(script, footprint) as process:
        await until_ready(process)
        os.kill(parent_of(process.pid), signal.SIGKILL)
        while await process.read() is not None:
            pass
    assert process.returncode is None
    footprint.assert_nothing_is_left()


async def test_a_shim_stays_in_no_directory(footprint: Footprint, tmp_path: Path) -> None:
    async with shell("echo ready; sleep 1000", footprint, cwd=str(tmp_path), interrupt_grace_ms=0) as process:
        assert os.readlink(f"/proc/{process.pid}/cwd") == str(tmp_path)
        assert os.readlink(f"/proc/{parent_of(process.pid)}/cwd") == "/"


def test_a_program_may_have_any_name(tmp_path: Path) -> None:
    program = tmp_path / ") S 1 (x"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "1000"]) as process:
        found = shim._look(process.pid)
        process.kill()
    assert found is not None
    assert (found.parent, found.session) == (os.getpid(), os.getsid(0))


def test_a_process_that_has_got_the_number_of_another_is_not_signalled() -> None:
    with subprocess.Popen("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        found = shim._look(process.pid)
        assert found is not None
        other = shim._Process(process.pid, b"S", 0, 0, found.started - 1)
        shim._send(other, signal.SIGKILL)
        process.stdin.write(b"alive\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"alive\n"
        shim._send(found, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


async def test_a_shim_that_somebody_has_stopped_is_given_up_in_the_end(
    footprint: Footprint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process_module, "_PATIENCE_S", 0.01)
    clock = JumpingClock()
    helper: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with shell("echo ready; sleep 1000", footprint, clock=clock) as process:
            await until_ready(process)
            helper.set_result(parent_of(process.pid))
            await process.read()

    task = asyncio.create_task(work())
    handle = os.pidfd_open(await helper)
    os.kill(await helper, signal.SIGSTOP)
    task.cancel()
    await clock.until_timers(2)
    task.cancel()  # the patience is with the second
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "does not answer" in caplog.text
    os.kill(await helper, signal.SIGCONT)
    await ended(handle)
    footprint.assert_nothing_is_left()


async def test_a_shim_that_was_killed_while_it_was_idle_is_replaced(footprint: Footprint) -> None:
    for _ in range(3):
        async with shell("echo $PPID", footprint) as process:
            helper = int((await output_of(process))[Stream.STDOUT])
        handle = os.pidfd_open(helper)
        os.kill(helper, signal.SIGKILL)
        await ended(handle)
    footprint.assert_nothing_is_left()


async def test_a_fork_server_that_was_killed_is_replaced(footprint: Footprint, new_helpers: None) -> None:
    async with shell("echo ready; sleep 1000", footprint, interrupt_grace_ms=0) as process:
        await until_ready(process)
        server = fork_server._server
        assert server is not None
        handle = os.pidfd_open(server._pid)
        os.kill(server._pid, signal.SIGKILL)
        await ended(handle)
        async with shell("exit 3", footprint) as another:
            await output_of(another)
        assert another.returncode == 3
        assert fork_server._server is not server
    footprint.assert_nothing_is_left()


async def ended(handle: int) -> None:
    """Return when the process has."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(handle, over.set)
    await over.wait()
    asyncio.get_running_loop().remove_reader(handle)
    os.close(handle)


@pytest.mark.parametrize("lines", ["raise SystemExit", "os.kill(os.getpid(), 9)"])
async def test_helpers_that_do_not_start_are_an_error_worth_another_try(
    lines: str, footprint: Footprint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_helpers: None
) -> None:
    cripple(monkeypatch, tmp_path, lines)
    with pytest.raises(ProviderUnavailable, match="helper"):
        async with shell("true", footprint):
            pass
    monkeypatch.undo()
    async with shell("exit 3", footprint) as process:
        await output_of(process)
    assert process.returncode == 3
    footprint.assert_nothing_is_left()


@pytest.mark.parametrize(("name", "value"), [("executable", ""), ("executable", None), ("frozen", True)])
async def test_without_an_interpreter_there_are_no_commands(
    name: str, value: Any, footprint: Footprint, monkeypatch: pytest.MonkeyPatch, new_helpers: None
) -> None:
    monkeypatch.setattr(sys, name, value, raising=False)
    with pytest.raises(DependencyMissing, match="Python interpreter"):
        async with shell("true", footprint):
            pass
    footprint.assert_nothing_is_left()


async def test_an_interpreter_that_is_gone_is_named(
    footprint: Footprint, monkeypatch: pytest.MonkeyPatch, new_helpers: None
) -> None:
    monkeypatch.setattr(sys, "executable", "/gone/python")
    with pytest.raises(ProviderUnavailable, match="/gone/python does not start: No such file"):
        async with shell("true", footprint):
            pass
    footprint.assert_nothing_is_left()


# -- many commands


async def test_one_shim_serves_one_command_after_the_other(footprint: Footprint, new_helpers: None) -> None:
    shims: set[bytes] = set()
    for number in range(5):
        async with shell(f"echo $PPID; pwd; exit {number}", footprint, cwd="/tmp") as process:
            helper, folder = (await output_of(process))[Stream.STDOUT].split()
            shims.add(helper)
        assert (process.returncode, folder) == (number, b"/tmp")
    assert len(shims) == 1


async def test_no_more_shims_are_kept_than_the_bound(footprint: Footprint, new_helpers: None) -> None:
    async def work() -> None:
        async with shell("true", footprint) as process:
            await output_of(process)

    await asyncio.gather(*(work() for _ in range(60)))
    assert len(fork_server._idle) == fork_server._IDLE
    footprint.assert_nothing_is_left()


async def test_hundreds_begin_and_are_cancelled_at_once(footprint: Footprint, new_helpers: None) -> None:
    async def work() -> None:
        async with shell("echo ready; exec sleep 1000", footprint, interrupt_grace_ms=0) as process:
            await until_ready(process)
            began.append(process)
            await process.read()

    began: list[ProcessGroup] = []
    tasks = [asyncio.create_task(work()) for _ in range(100)]
    while len(began) < 50:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    assert {type(outcome) for outcome in await asyncio.gather(*tasks, return_exceptions=True)} == {
        asyncio.CancelledError
    }
    footprint.assert_nothing_is_left()


async def test_a_program_that_has_changed_its_user_gets_other_helpers(
    footprint: Footprint, new_helpers: None
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    for group in (os.getegid(), 65534):
        server = fork_server._server
        os.setegid(group)
        try:
            async with ProcessGroup(["id", "-g"], cwd="/", env=footprint.env) as process:
                assert (await output_of(process))[Stream.STDOUT] == f"{group}\n".encode()
        finally:
            os.setegid(os.getgid())
        assert fork_server._server is not server
