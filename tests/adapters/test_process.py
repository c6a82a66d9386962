from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from asm_runtime.adapters.process import ProcessGroup, Stream, on_a_thread
from asm_runtime.errors import ProviderError, ProviderUnavailable, ValidationError
from asm_runtime.tasks import start_task
from asm_runtime.testing import JumpingClock
from tests.adapters.conftest import Footprint

IGNORES_INTERRUPT_AND_TERMINATE = "trap '' INT TERM; echo ready; while :; do sleep 1000; done"


def shell(script: str, footprint: Footprint, **options: Any) -> ProcessGroup:
    options.setdefault("cwd", "/")
    return ProcessGroup(["/bin/sh", "-c", script], env=footprint.env, **options)


async def output_of(process: ProcessGroup) -> dict[Stream, bytes]:
    collected = {Stream.STDOUT: b"", Stream.STDERR: b""}
    while (piece := await process.read()) is not None:
        collected[piece[0]] += piece[1]
    return collected


async def until_ready(process: ProcessGroup) -> None:
    assert await process.read() == (Stream.STDOUT, b"ready\n")


async def test_what_a_process_writes_is_read_stream_by_stream(footprint: Footprint) -> None:
    async with shell("echo out; echo err >&2; exit 3", footprint) as process:
        assert await output_of(process) == {Stream.STDOUT: b"out\n", Stream.STDERR: b"err\n"}
        assert await process.read() is None
    assert process.returncode == 3
    footprint.assert_nothing_is_left()


async def test_a_process_that_writes_nothing_is_waited_for(footprint: Footprint) -> None:
    async with shell("exec >&- 2>&-; sleep 0.05; exit 4", footprint) as process:
        assert await process.read() is None
    assert process.returncode == 4


async def test_it_finds_its_input_arguments_directory_and_nothing_but_its_environment(
    footprint: Footprint, tmp_path: Path
) -> None:
    script = "import os, sys; print(sys.stdin.read(), sys.argv[1:], os.getcwd(), sorted(os.environ))"
    argv = [sys.executable, "-c", script, "a b", "$HOME"]
    async with ProcessGroup(
        argv, cwd=str(tmp_path), env={"LC_ALL": "C", **footprint.env}, stdin=b"hi"
    ) as process:
        text = (await output_of(process))[Stream.STDOUT].decode()
    assert text.startswith(f"hi ['a b', '$HOME'] {tmp_path} ['ASM_TEST_MARK', 'LC_ALL', 'PATH'")


async def test_without_input_standard_input_is_empty(footprint: Footprint) -> None:
    async with shell("cat; echo end", footprint) as process:
        assert (await output_of(process))[Stream.STDOUT] == b"end\n"


async def test_a_large_input_that_nobody_reads_does_not_hold_the_process_up(footprint: Footprint) -> None:
    async with shell("echo done", footprint, stdin=b"x" * 5_000_000) as process:
        assert (await output_of(process))[Stream.STDOUT] == b"done\n"
    footprint.assert_nothing_is_left()


async def test_it_leads_a_session_and_a_group_of_its_own(footprint: Footprint) -> None:
    async with shell("ps -o pid=,pgid=,sid= -p $$ || echo $$ $$ $$", footprint) as process:
        pid, pgid, sid = (await output_of(process))[Stream.STDOUT].split()
    assert int(pid) == int(pgid) == int(sid) == process.pid != os.getpgrp()


async def test_a_death_by_signal_is_a_negative_returncode(footprint: Footprint) -> None:
    async with shell("kill -SEGV $$", footprint) as process:
        assert await process.read() is None
    assert process.returncode == -signal.SIGSEGV


@pytest.mark.parametrize("cwd", ["/does/not/exist", "/etc/passwd"])
async def test_a_directory_that_cannot_be_entered_is_named(footprint: Footprint, cwd: str) -> None:
    with pytest.raises(ValidationError, match=f"cwd .* {cwd}"):
        async with shell("true", footprint, cwd=cwd):
            pass
    footprint.assert_nothing_is_left()


async def test_a_program_that_does_not_exist_is_named(footprint: Footprint) -> None:
    with pytest.raises(ProviderError, match="command not found: no-such-program") as caught:
        async with ProcessGroup(["no-such-program"], cwd="/", env=footprint.env):
            pass
    assert caught.value.details == {"command": "no-such-program", "errno": "ENOENT"}
    footprint.assert_nothing_is_left()


async def test_a_file_that_cannot_be_executed_is_named(footprint: Footprint) -> None:
    with pytest.raises(ProviderError, match="/etc/passwd is not executable"):
        async with ProcessGroup(["/etc/passwd"], cwd="/", env=footprint.env):
            pass


async def test_a_file_that_is_no_program_is_named(footprint: Footprint, tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(b"\0nothing")
    file.chmod(0o755)
    with pytest.raises(ProviderError, match="not a program that the system can execute"):
        async with ProcessGroup([str(file)], cwd="/", env=footprint.env):
            pass


async def test_arguments_that_are_too_long_are_refused(footprint: Footprint) -> None:
    with pytest.raises(ValidationError, match="longer than the system allows"):
        async with ProcessGroup(["true", "x" * 3_000_000], cwd="/", env=footprint.env):
            pass
    footprint.assert_nothing_is_left()


async def test_a_directory_is_an_absolute_path(footprint: Footprint) -> None:
    with pytest.raises(ValidationError, match="cwd"):
        shell("true", footprint, cwd="here")


async def test_a_system_that_is_out_of_files_is_worth_another_try(footprint: Footprint) -> None:
    async def work() -> None:
        async with shell("true", footprint) as process:
            await process.read()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes: list[BaseException | None] = []
    await work()  # helpers have the limits that held when the first was started
    for room in range(12):
        working = start_task(work())  # it begins under the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + room, hard))
        await asyncio.wait([working])
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        outcomes.append(working.exception())
        footprint.assert_nothing_is_left()
    assert {type(outcome) for outcome in outcomes} == {ProviderUnavailable, type(None)}
    assert outcomes[-1] is None


async def test_a_block_left_early_takes_everybody_with_it(footprint: Footprint) -> None:
    async def work() -> None:
        # dash loses an interrupt that comes while it starts a command: hence the short grace.
        script, graces = (
            "sleep 1000 & echo ready; sleep 1000",
            {"interrupt_grace_ms": 50, "drain_grace_ms": 0},
        )
        async with shell(script, footprint, **graces) as process:
            await until_ready(process)
            raise LookupError

    with pytest.raises(LookupError):
        await work()
    footprint.assert_nothing_is_left()


async def test_a_process_may_leave_in_its_own_time_when_it_is_interrupted(footprint: Footprint) -> None:
    script = "trap 'echo cleaning up; exit 7' INT; echo ready; while :; do sleep 0.01; done"
    async with shell(script, footprint) as process:
        await until_ready(process)
        assert process.stop()
        assert process.stop()
        assert (await output_of(process))[Stream.STDOUT] == b"cleaning up\n"
        assert not process.stop()
    assert process.returncode == 7


async def test_who_ignores_the_interrupt_is_terminated_and_who_ignores_that_is_killed(
    footprint: Footprint,
) -> None:
    clock = JumpingClock()
    script = (
        "exec 2>/dev/null; trap '' INT; trap 'echo terminated' TERM; echo ready; while :; do sleep 0.01; done"
    )
    async with shell(script, footprint, clock=clock) as process:
        await until_ready(process)
        process.stop()
        await clock.advance_ms(2_000)
        assert await process.read() == (Stream.STDOUT, b"terminated\n")
        await clock.advance_ms(2_000)
        assert await process.read() is None
    assert process.returncode == -signal.SIGKILL
    footprint.assert_nothing_is_left()


async def test_the_interrupt_reaches_the_whole_group(footprint: Footprint) -> None:
    script = """sh -c 'trap "echo child; exit" INT; echo ready; while :; do sleep 0.01; done'"""
    async with shell(script, footprint) as process:
        await until_ready(process)
        process.stop()
        assert (await output_of(process))[Stream.STDOUT] == b"child\n"
    footprint.assert_nothing_is_left()


async def test_a_grandchild_that_holds_the_output_is_waited_for_during_the_grace(
    footprint: Footprint,
) -> None:
    async with shell("(sleep 0.05; echo late) & echo early", footprint, drain_grace_ms=60_000) as process:
        assert (await output_of(process))[Stream.STDOUT] == b"early\nlate\n"
    assert process.returncode == 0


async def test_a_grandchild_that_holds_the_output_for_ever_is_killed_after_the_grace(
    footprint: Footprint,
) -> None:
    clock = JumpingClock()
    async with shell("sleep 1000 & echo early", footprint, clock=clock) as process:
        assert await process.read() == (Stream.STDOUT, b"early\n")
        ended = asyncio.create_task(process.read())
        await clock.until_timers()
        assert len(footprint.processes()) == 1
        await clock.advance_ms(500)
        assert await ended is None
    assert process.returncode == 0
    footprint.assert_nothing_is_left()


async def test_a_grandchild_in_the_background_is_killed_at_the_end(footprint: Footprint) -> None:
    async with shell("sleep 1000 >/dev/null 2>&1 & echo early", footprint) as process:
        assert (await output_of(process))[Stream.STDOUT] == b"early\n"
    assert process.returncode == 0
    footprint.assert_nothing_is_left()


async def test_what_was_written_before_the_exit_is_read_whatever_the_reader_does(
    footprint: Footprint,
) -> None:
    clock = JumpingClock()
    script = """
import fcntl, subprocess
size = fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1_048_576)
subprocess.Popen(["sleep", "1000"])
open(1, "wb").write(bytes(size))
"""
    async with ProcessGroup(
        [sys.executable, "-c", script], cwd="/", env=footprint.env, clock=clock
    ) as process:
        await clock.until_timers()
        await clock.advance_ms(60_000)
        assert len((await output_of(process))[Stream.STDOUT]) == 1_048_576
    footprint.assert_nothing_is_left()


async def test_who_left_the_session_and_holds_the_output_is_not_waited_for(
    footprint: Footprint, tmp_path: Path
) -> None:
    left = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {left}; echo out; exec yes' & while [ ! -s {left} ]; do :; done"
    async with shell(script, footprint, drain_grace_ms=0) as process:
        assert (await output_of(process))[Stream.STDOUT].startswith(b"out\n")
    assert process.returncode == 0


async def test_a_read_may_be_given_up_after_a_time_and_nothing_is_lost(
    footprint: Footprint, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    clock = JumpingClock()
    async with shell(f"echo ready; cat {pipe}", footprint, clock=clock) as process:
        await until_ready(process)
        reading = asyncio.create_task(process.read(timeout_ms=100))
        await clock.until_timers()
        await clock.advance_ms(100)
        with pytest.raises(TimeoutError):
            await reading
        await asyncio.to_thread(pipe.write_text, "late")
        assert await process.read(timeout_ms=100) == (Stream.STDOUT, b"late")
        assert await process.read() is None
        assert await process.read(timeout_ms=0) is None
    assert clock.timers == 0


async def test_a_torrent_of_output_does_not_keep_the_loop_from_its_work(footprint: Footprint) -> None:
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(count)

    count()
    async with shell("yes | head -c 50000000", footprint) as process:
        size = 0
        while (piece := await process.read()) is not None:
            size += len(piece[1])
    assert size == 50_000_000
    assert turns >= 50_000_000 / 65_536


async def test_a_reader_that_pauses_slows_the_process_down(footprint: Footprint, tmp_path: Path) -> None:
    mark = tmp_path / "written"
    async with shell(f"head -c 1000000 /dev/zero; touch {mark}", footprint) as process:
        assert await process.read() is not None
        for _ in range(100):
            await asyncio.sleep(0)
        assert not mark.exists()
        await output_of(process)
    assert mark.exists()


async def test_cancelled_while_it_is_started_nothing_is_left(footprint: Footprint) -> None:
    async def work() -> None:
        async with shell("sleep 1000 & sleep 1000", footprint):
            await asyncio.Future()

    for turns in range(4):
        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert footprint.processes() == []


async def test_what_a_thread_opens_for_a_cancelled_caller_is_given_back() -> None:
    loop = asyncio.get_running_loop()
    working: asyncio.Future[None] = loop.create_future()
    go_on = threading.Event()
    given_back: list[str] = []

    def work() -> str:
        loop.call_soon_threadsafe(working.set_result, None)
        go_on.wait()
        return "opened"

    task = asyncio.create_task(on_a_thread(work, unwanted=given_back.append))
    await working
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert given_back == ["opened"]


async def test_cancelled_while_a_start_fails_it_is_cancelled(footprint: Footprint) -> None:
    async def work() -> None:
        async with shell("true", footprint, cwd="/does/not/exist"):
            pass

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    footprint.assert_nothing_is_left()


async def test_cancelled_twice_it_is_killed_without_further_grace(footprint: Footprint) -> None:
    clock = JumpingClock()
    ready = asyncio.Event()

    async def work() -> None:
        async with shell(IGNORES_INTERRUPT_AND_TERMINATE, footprint, clock=clock) as process:
            await until_ready(process)
            ready.set()
            await process.read()

    task = asyncio.create_task(work())
    await ready.wait()
    task.cancel()
    await clock.until_timers(2)
    assert not task.done()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.timers == 0
    footprint.assert_nothing_is_left()


async def test_cancelled_after_the_leaders_exit_who_is_left_is_killed_at_once(footprint: Footprint) -> None:
    clock = JumpingClock()

    async def work() -> None:
        async with shell("sleep 1000 & exit 0", footprint, clock=clock) as process:
            await process.read()

    task = asyncio.create_task(work())
    await clock.until_timers()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    footprint.assert_nothing_is_left()


async def test_cancelled_while_it_leaves_its_block_it_is_cancelled(footprint: Footprint) -> None:
    clock = JumpingClock()
    left = asyncio.Event()

    async def work() -> None:
        async with shell(IGNORES_INTERRUPT_AND_TERMINATE, footprint, clock=clock) as process:
            await until_ready(process)
            left.set()

    task = asyncio.create_task(work())
    await left.wait()
    await clock.until_timers(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    footprint.assert_nothing_is_left()


@pytest.mark.skipif(sys.platform != "linux", reason="only there nobody gets away")
async def test_a_block_that_fails_takes_the_daemons_of_a_process_that_has_exited(
    footprint: Footprint,
) -> None:
    daemon = "setsid -f sh -c 'exec >/dev/null 2>&1; exec sleep 1000'"

    async def work() -> None:
        async with shell(daemon, footprint, clock=JumpingClock()) as process:
            assert await process.read() is None
            raise KeyError

    with pytest.raises(KeyError):
        await work()
    footprint.assert_nothing_is_left()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_is_closed_under_it_leaves_nothing_behind(new_loop: Any) -> None:
    footprint = Footprint(f"closed-{os.urandom(8).hex()}")
    loop = new_loop()
    ready: asyncio.Future[None] = loop.create_future()

    async def work() -> None:
        async with shell("sleep 1000 & echo ready; sleep 1000", footprint) as process:
            await until_ready(process)
            ready.set_result(None)
            await process.read()

    working: Coroutine[Any, Any, None] = work()
    task = loop.create_task(working)
    loop.run_until_complete(ready)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    working.close()
    assert footprint.processes() == []
    del task


async def test_many_at_once(footprint: Footprint) -> None:
    async def work(number: int) -> int | None:
        async with shell(f"echo {number}; exit {number}", footprint) as process:
            assert (await output_of(process))[Stream.STDOUT] == f"{number}\n".encode()
        return process.returncode

    assert await asyncio.gather(*map(work, range(40))) == list(range(40))
    assert footprint.processes() == []


async def test_other_children_of_this_program_are_left_to_it(footprint: Footprint) -> None:
    other = await asyncio.to_thread(subprocess.Popen, ["/bin/sh", "-c", "exit 5"])
    async with shell("exit 3", footprint) as process:
        await output_of(process)
    assert process.returncode == 3
    assert await asyncio.to_thread(other.wait) == 5
