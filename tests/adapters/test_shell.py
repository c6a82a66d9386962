from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asm_runtime.adapters import ShellAdapter
from asm_runtime.errors import (
    LeaseLost,
    PolicyViolation,
    ProviderError,
    ProviderTimeout,
    RunCancelled,
    ValidationError,
)
from asm_runtime.ports import ProviderAdapter
from asm_runtime.records import EventType
from asm_runtime.testing import JumpingClock
from tests.adapters.conftest import Footprint
from tests.adapters.recording import Recording

STUBBORN = "trap '' INT TERM; (trap '' INT TERM; sleep 1000) & echo ready; while :; do sleep 1000; done"


def adapter(footprint: Footprint, **options: Any) -> ShellAdapter:
    options.setdefault("cwd", "/")
    return ShellAdapter(env=footprint.env | options.pop("env", {}), **options)


def test_it_is_an_adapter() -> None:
    assert isinstance(ShellAdapter(), ProviderAdapter)
    assert ShellAdapter().name == "shell"


# -- what a run reports


async def test_a_command_is_a_run(footprint: Footprint, tmp_path: Path) -> None:
    recording = Recording({"command": "echo one; echo two >&2; sleep 0.01; echo three"})
    result = await recording.of(adapter(footprint, cwd=tmp_path))
    (started, call, *streamed, completed) = recording.events
    pid = started[1].pop("pid")
    command = {"command": "echo one; echo two >&2; sleep 0.01; echo three", "cwd": str(tmp_path)}
    assert started == ("run_started", command)
    assert isinstance(pid, int)
    call_id = call[1].pop("tool_call_id")
    assert call == ("tool_call_started", {"tool_name": "shell", "tool_input": command})
    assert sorted(data["content"] for _, data in streamed) == ["one", "three", "two"]
    assert ("message_streamed", {"content": "two", "delta": "two\n", "stream": "stderr"}) in streamed
    assert recording.lines("stdout") == ["one", "three"]
    duration_ms = completed[1]["tool_output"]["duration_ms"]
    facts = {"exit_code": 0, "duration_ms": duration_ms, "truncated": False}
    assert completed == (
        "tool_call_completed",
        {"tool_call_id": call_id, "tool_name": "shell", "tool_output": facts},
    )
    assert result.output == {"content": "one\nthree\n", "stderr": "two\n", **facts}
    assert result.stop_reason == "exit_code_0"
    footprint.assert_nothing_is_left()


async def test_lines_are_reported_while_the_command_runs(footprint: Footprint, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    recording = Recording({"command": f"echo before; cat {pipe}; echo after"})
    running = recording.begin(adapter(footprint))
    await recording.until(EventType.MESSAGE_STREAMED, "before")
    await asyncio.to_thread(pipe.write_text, "between\n")
    await running
    assert recording.lines() == ["before", "between", "after"]


async def test_a_program_and_its_arguments_are_not_seen_by_a_shell(footprint: Footprint) -> None:
    recording = Recording({"command": ["echo", "$HOME; id", "*"]})
    await recording.of(adapter(footprint))
    assert recording.lines() == ["$HOME; id *"]
    (call,) = recording.data_of(EventType.TOOL_CALL_STARTED)
    assert call["tool_input"] == {"command": "echo", "args": ["$HOME; id", "*"], "cwd": "/"}


async def test_a_prompt_is_a_command(footprint: Footprint) -> None:
    assert (await Recording({"prompt": "echo $((6 * 7))"}).of(adapter(footprint))).output["content"] == "42\n"


@pytest.mark.parametrize("text", ["-c id", "--help", "+x", "-"])
async def test_a_text_that_begins_like_an_option_is_a_command(footprint: Footprint, text: str) -> None:
    with pytest.raises(ProviderError, match="code 127"):
        await Recording(text).of(adapter(footprint))


async def test_a_run_can_bring_its_own_directory_variables_and_input(
    footprint: Footprint, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir()
    asked = {"command": "pwd; echo $A$B$C; cat", "cwd": "below", "env": {"A": "a"}, "stdin": "some\0text"}
    recording = Recording(asked, adapter_opts={"cwd": "/", "env": {"A": "x", "B": "b"}})
    await recording.of(adapter(footprint, cwd=tmp_path, env={"B": "x", "C": "c"}))
    assert recording.lines() == [f"{tmp_path}/below", "abc", "some\0text"]


async def test_commands_see_little_of_this_process_environment(
    footprint: Footprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "secret")
    monkeypatch.setenv("LC_TIME", "C")
    result = await Recording({"command": ["env"]}).of(adapter(footprint))
    names = {line.partition("=")[0] for line in result.output["content"].splitlines()}
    assert "API_TOKEN" not in names
    assert {"PATH", "LC_TIME", "ASM_TEST_MARK"} <= names
    result = await Recording({"command": ["env"]}).of(adapter(footprint, inherit_env=["API_*"]))
    assert "API_TOKEN=secret\n" in result.output["content"]


async def test_standard_input_is_empty_unless_given(footprint: Footprint) -> None:
    assert (await Recording({"command": "cat; echo end"}).of(adapter(footprint))).output["content"] == "end\n"


async def test_where_the_process_is_found_is_reported_when_it_starts(footprint: Footprint) -> None:
    recording = Recording({"command": "cat /proc/$$/stat /proc/sys/kernel/random/boot_id"})
    result = await recording.of(adapter(footprint))
    stat, boot = result.output["content"].splitlines()
    place = recording.types().index("tool_call_started")
    assert recording.metadata[place] == {
        "process": {"pid": int(stat.split()[0]), "started": int(stat.split()[21]), "boot": boot}
    }


async def test_a_new_attempt_begins_when_the_processes_of_the_last_are_gone(
    footprint: Footprint, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    script = (
        f"trap 'echo ended >>{log}; exit' INT; echo began >>{log}; echo ready; while :; do sleep 0.01; done"
    )
    first = Recording({"command": script})
    second = first.next_attempt()
    running = first.begin(adapter(footprint))
    await first.until(EventType.MESSAGE_STREAMED, "ready")
    requeued = second.begin(other := adapter(footprint))
    await Recording("true").of(adapter(footprint))  # another run is not held up
    await asyncio.gather(*(Recording("true").of(other) for _ in range(3)))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await second.until(EventType.MESSAGE_STREAMED, "ready")
    requeued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await requeued
    assert log.read_text().split() == ["began", "ended", "began", "ended"]
    footprint.assert_nothing_is_left()


# -- how a run fails


async def test_another_exit_code_fails_the_run_with_the_end_of_stderr(footprint: Footprint) -> None:
    recording = Recording({"command": "echo out; echo why >&2; exit 3"})
    with pytest.raises(ProviderError, match="exited with code 3") as caught:
        await recording.of(adapter(footprint))
    details = caught.value.details
    assert details == {
        "command": "echo out; echo why >&2; exit 3",
        "exit_code": 3,
        "stderr": "why\n",
        "truncated": False,
        "duration_ms": details["duration_ms"],
    }
    assert not caught.value.retryable
    assert recording.types()[-1] == "tool_call_failed"
    (failed,) = recording.data_of(EventType.TOOL_CALL_FAILED)
    assert failed["tool_output"]["exit_code"] == 3
    assert failed["error_code"] == "provider_error"
    assert failed["error_message"] == "the command exited with code 3"


async def test_exit_codes_can_be_told_to_be_successes(footprint: Footprint) -> None:
    grep = adapter(footprint, success_exit_codes=[0, 1])
    result = await Recording({"command": ["grep", "x", "/dev/null"]}).of(grep)
    assert (result.output["exit_code"], result.stop_reason) == (1, "exit_code_1")
    with pytest.raises(ProviderError):
        await Recording({"command": "exit 2"}).of(grep)


async def test_a_death_by_signal_fails_the_run_with_its_name(footprint: Footprint) -> None:
    with pytest.raises(ProviderError, match="killed by SIGSEGV") as caught:
        await Recording({"command": "kill -SEGV $$"}).of(adapter(footprint))
    assert (caught.value.details["exit_code"], caught.value.details["signal"]) == (None, "SIGSEGV")
    with pytest.raises(ProviderError, match="killed by signal 40"):
        await Recording({"command": ["bash", "-c", "kill -40 $$"]}).of(adapter(footprint))


async def test_of_a_long_stderr_the_error_has_the_end(footprint: Footprint) -> None:
    script = "seq 1 1000 >&2; exit 1"
    with pytest.raises(ProviderError) as caught:
        await Recording({"command": script}).of(adapter(footprint, stderr_tail_lines=2))
    assert caught.value.details["stderr"] == "999\n1000\n"
    with pytest.raises(ProviderError) as caught:
        await Recording({"command": script}).of(adapter(footprint, stderr_tail_bytes=7))
    assert caught.value.details["stderr"] == "9\n1000\n"


async def test_a_program_that_is_not_there_fails_the_run_before_any_event(footprint: Footprint) -> None:
    recording = Recording({"command": ["no-such-program"]})
    with pytest.raises(ProviderError, match="command not found: no-such-program"):
        await recording.of(adapter(footprint))
    assert recording.events == []


async def test_a_directory_that_is_not_there_fails_the_run_by_its_name(footprint: Footprint) -> None:
    for shell, opts in (
        (adapter(footprint), {"cwd": "/does/not/exist"}),
        (adapter(footprint, cwd="/does/not/exist"), {}),
    ):
        with pytest.raises(ValidationError, match=r"cwd .* /does/not/exist"):
            await Recording("true", adapter_opts=opts).of(shell)


async def test_a_command_whose_helper_is_killed_fails_its_run(footprint: Footprint) -> None:
    recording = Recording({"command": "echo $PPID; sleep 1000; exit 0"})
    running = recording.begin(adapter(footprint))
    said = await recording.until(EventType.MESSAGE_STREAMED)
    os.kill(int(said["content"]), signal.SIGKILL)
    with pytest.raises(ProviderError, match="exit code"):
        await running
    footprint.assert_nothing_is_left()


# -- timeouts


async def test_a_command_that_takes_too_long_is_stopped_and_fails_as_a_timeout(footprint: Footprint) -> None:
    clock = JumpingClock()
    recording = Recording({"command": "echo begun; echo hm >&2; exec sleep 1000", "timeout_ms": 5_000})
    running = recording.begin(adapter(footprint, clock=clock))
    await recording.until(EventType.MESSAGE_STREAMED, "hm")
    await clock.advance_ms(5_000 + 2_000 + 2_000)
    with pytest.raises(ProviderTimeout, match="longer than 5000 ms") as caught:
        await running
    assert caught.value.retryable
    assert caught.value.details["timeout_ms"] == 5_000
    assert caught.value.details["stderr"].startswith("hm\n")
    assert recording.types()[-1] == "tool_call_failed"
    assert clock.timers == 0
    footprint.assert_nothing_is_left()


async def test_what_a_command_says_when_it_is_stopped_is_still_reported(footprint: Footprint) -> None:
    clock = JumpingClock()
    script = "trap 'echo goodbye; exit 0' INT; echo ready; while :; do sleep 0.01; done"
    recording = Recording({"command": script})
    running = recording.begin(adapter(footprint, clock=clock, timeout_ms=1_000))
    await recording.until(EventType.MESSAGE_STREAMED, "ready")
    await clock.advance_ms(1_000)
    with pytest.raises(ProviderTimeout):
        await running
    assert recording.lines("stdout") == ["ready", "goodbye"]


async def test_who_ignores_every_request_to_stop_is_killed_with_its_children(footprint: Footprint) -> None:
    clock = JumpingClock()
    recording = Recording({"command": STUBBORN, "timeout_ms": 1_000})
    running = recording.begin(adapter(footprint, clock=clock))
    await recording.until(EventType.MESSAGE_STREAMED, "ready")
    await clock.advance_ms(4_999)
    assert not running.done()
    await clock.advance_ms(1)
    with pytest.raises(ProviderTimeout) as caught:
        await running
    assert caught.value.details["signal"] == "SIGKILL"
    footprint.assert_nothing_is_left()


async def test_a_command_that_is_in_time_leaves_no_timer(footprint: Footprint) -> None:
    clock = JumpingClock()
    await Recording({"command": "true", "timeout_ms": 1_000}).of(adapter(footprint, clock=clock))
    assert clock.timers == 0


# -- cancellation


async def test_cancel_stops_the_process_group_and_no_other(footprint: Footprint) -> None:
    clock = JumpingClock()
    shell = adapter(footprint, clock=clock)
    one, other = Recording({"command": STUBBORN}), Recording({"command": "echo ready; exec sleep 1000"})
    running, going_on = one.begin(shell), other.begin(shell)
    await one.until(EventType.MESSAGE_STREAMED, "ready")
    await other.until(EventType.MESSAGE_STREAMED, "ready")
    await shell.cancel(one.run.id)
    await shell.cancel(one.run.id)
    await clock.advance_ms(4_000)
    with pytest.raises(RunCancelled) as caught:
        await running
    assert caught.value.details["reason"] == "provider_cancelled"
    await shell.cancel(one.run.id)
    assert len(footprint.processes()) == 1
    going_on.cancel()
    await clock.advance_ms(4_000)
    with pytest.raises(asyncio.CancelledError):
        await going_on
    footprint.assert_nothing_is_left()


async def test_cancel_before_the_process_is_there_stops_it_when_it_is(footprint: Footprint) -> None:
    shell = adapter(footprint, interrupt_grace_ms=0)
    recording = Recording({"command": ["sleep", "1000"]})
    running = recording.begin(shell)
    await asyncio.sleep(0)
    await shell.cancel(recording.run.id)
    with pytest.raises(RunCancelled):
        await running
    footprint.assert_nothing_is_left()


async def test_cancel_of_an_unknown_run_does_nothing() -> None:
    await ShellAdapter().cancel("run_unknown")


async def test_cancel_of_an_id_that_two_sessions_use_stops_neither(
    footprint: Footprint, tmp_path: Path
) -> None:
    signpost = tmp_path / "go"
    script = f"echo ready; while [ ! -e {signpost} ]; do sleep 0.01; done"
    shell = adapter(footprint)
    recordings = [Recording({"command": script}, run_id="build") for _ in range(2)]
    running = [recording.begin(shell) for recording in recordings]
    for recording in recordings:
        await recording.until(EventType.MESSAGE_STREAMED, "ready")
    await shell.cancel("build")
    await asyncio.to_thread(signpost.touch)
    assert [result.output["exit_code"] for result in await asyncio.gather(*running)] == [0, 0]


async def test_a_cancelled_task_leaves_no_process_behind(footprint: Footprint) -> None:
    script = "sleep 1000 & sh -c 'sleep 1000 & sleep 1000' & echo ready; sleep 1000"
    shell = adapter(footprint, interrupt_grace_ms=0, terminate_grace_ms=0, drain_grace_ms=0)
    recording = Recording({"command": script})
    running = recording.begin(shell)
    await recording.until(EventType.MESSAGE_STREAMED, "ready")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert "tool_call_failed" not in recording.types()
    footprint.assert_nothing_is_left()


async def test_a_task_that_is_cancelled_twice_kills_at_once(footprint: Footprint) -> None:
    clock = JumpingClock()
    recording = Recording({"command": STUBBORN})
    running = recording.begin(adapter(footprint, clock=clock))
    await recording.until(EventType.MESSAGE_STREAMED, "ready")
    running.cancel()
    await clock.until_timers(2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert clock.timers == 0
    footprint.assert_nothing_is_left()


@pytest.mark.parametrize("command", ["sleep 1000 & echo ready; sleep 1000", ["sh", "-c", "yes & exec yes"]])
async def test_cancelled_at_whatever_turn_of_the_loop_nothing_is_left(
    footprint: Footprint, command: Any
) -> None:
    graces = {"interrupt_grace_ms": 0, "terminate_grace_ms": 0, "drain_grace_ms": 0}
    shell = adapter(footprint, max_output_bytes=100_000, **graces)
    for turns in range(30):
        running = Recording({"command": command}).begin(shell)
        for _ in range(turns):
            await asyncio.sleep(0.0003 if turns > 10 else 0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert footprint.processes() == []
    footprint.assert_nothing_is_left()


async def test_a_report_that_is_refused_ends_the_command(footprint: Footprint) -> None:
    recording = Recording({"command": "sleep 1000 & echo ready; exec sleep 1000"})

    async def refuse(type: EventType | str, data: Any = None, **rest: Any) -> None:
        if type == EventType.MESSAGE_STREAMED:
            raise LeaseLost("the run has moved on")

    context = type(recording.context)(emit=refuse, attempt=1)
    shell = adapter(footprint, interrupt_grace_ms=0, drain_grace_ms=0)
    with pytest.raises(LeaseLost):
        await shell.execute(recording.run, recording.session, context)
    footprint.assert_nothing_is_left()


async def test_a_cancelled_run_whose_reports_find_no_room_ends_all_the_same(footprint: Footprint) -> None:
    recording = Recording({"command": "echo ready; yes"})
    running = recording.begin(adapter(footprint, interrupt_grace_ms=0))
    await recording.until(EventType.MESSAGE_STREAMED, "ready")
    recording.room.clear()
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    footprint.assert_nothing_is_left()


# -- output of every kind


async def test_what_is_left_in_the_background_does_not_keep_the_run(footprint: Footprint) -> None:
    clock = JumpingClock()
    recording = Recording({"command": "sleep 1000 & echo done"})
    running = recording.begin(adapter(footprint, clock=clock))
    await recording.until(EventType.MESSAGE_STREAMED, "done")
    await clock.until_timers()
    await clock.advance_ms(500)
    assert (await running).output["content"] == "done\n"
    footprint.assert_nothing_is_left()


async def test_past_its_bound_output_is_dropped_and_the_command_goes_on(
    footprint: Footprint, tmp_path: Path
) -> None:
    mark = tmp_path / "finished"
    recording = Recording({"command": f"yes 0123456789 | head -c 50000000; touch {mark}"})
    result = await recording.of(adapter(footprint, max_output_bytes=1_000))
    assert mark.exists()
    assert result.output["truncated"]
    assert result.output["content"] == ("0123456789\n" * 91)[:1_000]
    assert recording.written() == result.output["content"]
    assert recording.data_of(EventType.TOOL_CALL_COMPLETED)[0]["tool_output"]["truncated"]


async def test_a_hundred_thousand_lines_arrive_in_order(footprint: Footprint) -> None:
    recording = Recording({"command": "seq 1 100000"})
    result = await recording.of(adapter(footprint))
    assert recording.lines() == [str(number) for number in range(1, 100_001)]
    assert not result.output["truncated"]


@pytest.mark.parametrize(
    "script", ["yes '' | head -c 1048576", "yes '' | head -c 1048576 | stdbuf -o0 cat >&2"]
)
async def test_a_flood_of_tiny_lines_is_few_events(footprint: Footprint, script: str) -> None:
    clock = JumpingClock()  # no time passes, so that only the bytes count
    recording = Recording({"command": script})
    await recording.of(adapter(footprint, clock=clock))
    assert recording.written() == "\n" * 1_048_576
    assert len(recording.data_of(EventType.MESSAGE_STREAMED)) <= 2 + 1_048_576 // 65_536
    assert clock.timers == 0


async def test_the_first_line_comes_at_once_and_what_follows_soon_comes_together(
    footprint: Footprint, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    clock = JumpingClock()
    recording = Recording(
        {"command": f"echo one; cat {pipe}; echo out; echo two >&2; cat {pipe}; echo half >&2"}
    )
    running = recording.begin(adapter(footprint, clock=clock))
    await recording.until(EventType.MESSAGE_STREAMED, "one")
    await asyncio.to_thread(pipe.write_text, "2\n3\nh")
    await recording.until(EventType.MESSAGE_STREAMED, "two")  # the first of its stream
    assert recording.written("stdout") == "one\n"
    await clock.until_timers()
    await clock.advance_ms(49)
    assert recording.written("stdout") == "one\n"
    await clock.advance_ms(1)
    assert (await recording.until(EventType.MESSAGE_STREAMED, "2"))["content"].startswith("2\n3")
    await asyncio.to_thread(pipe.write_text, "alf\n")
    await running
    assert recording.written("stdout") == "one\n2\n3\nhout\nalf\n"
    assert recording.written("stderr") == "two\nhalf\n"


async def test_the_deltas_joined_are_the_output(footprint: Footprint) -> None:
    script = "printf 'a\\r\\nb\\n\\n\\303\\n\\342\\202\\254\\377'; printf 'x\\r\\n' >&2"
    recording = Recording({"command": script})
    result = await recording.of(adapter(footprint))
    assert recording.written("stdout") == result.output["content"] == "a\r\nb\n\n\ufffd\n€\ufffd"
    assert recording.written("stderr") == result.output["stderr"] == "x\r\n"
    assert recording.data_of(EventType.MESSAGE_STREAMED)[-1]["delta"] != ""
    contents = {data["content"] for data in recording.data_of(EventType.MESSAGE_STREAMED)}
    assert "x" in contents


async def test_a_flood_does_not_keep_the_loop_from_its_work(footprint: Footprint) -> None:
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(count)

    count()
    recording = Recording({"command": "seq 1 50000"})
    await recording.of(adapter(footprint, max_line_bytes=4))
    assert turns >= len(recording.events) / 256 > 100


async def test_a_long_line_comes_in_pieces(footprint: Footprint) -> None:
    recording = Recording({"command": "printf 123456789; echo; echo x"})
    result = await recording.of(adapter(footprint, max_line_bytes=4))
    contents = [data["content"] for data in recording.data_of(EventType.MESSAGE_STREAMED)]
    assert contents in (["1234", "5678", "9\nx"], ["1234", "5678", "9", "x"])
    assert recording.written() == result.output["content"] == "123456789\nx\n"


async def test_binary_output_becomes_text_that_can_be_stored(footprint: Footprint) -> None:
    recording = Recording({"command": "head -c 300000 /dev/urandom; printf '\\0\\377\\355\\240\\200'"})
    result = await recording.of(adapter(footprint))
    assert result.output["content"].endswith("\0\ufffd\ufffd\ufffd\ufffd")
    result.output["content"].encode()


async def test_a_character_that_arrives_in_two_halves_is_one(footprint: Footprint) -> None:
    recording = Recording({"command": "printf '\\342\\202'; sleep 0.02; printf '\\254\\n'"})
    await recording.of(adapter(footprint))
    assert recording.lines() == ["€"]


# -- policy


@pytest.mark.parametrize(
    "command",
    [
        "id -u",
        "echo hi; id -u",
        "echo $(id -u)",
        ["id", "-u"],
        ["sh", "-c", "id -u"],
        ["env", "id"],
        ["/usr/bin/id"],
        ["./innocent"],
    ],
)
@pytest.mark.parametrize("lists", [{"allowed_commands": ["echo"]}, {"denied_commands": ["id"]}])
async def test_a_forbidden_command_is_not_executed(
    footprint: Footprint, tmp_path: Path, command: Any, lists: dict[str, list[str]]
) -> None:
    (tmp_path / "innocent").symlink_to("/usr/bin/id")
    recording = Recording({"command": command})
    with pytest.raises(PolicyViolation) as caught:
        await recording.of(adapter(footprint, cwd=tmp_path, **lists))
    assert caught.value.details
    assert recording.events == []


@pytest.mark.parametrize("command", ["echo 'hi there'", ["echo", "hi there"], "echo 'hi there' | cat"])
@pytest.mark.parametrize("lists", [{"allowed_commands": ["echo", "cat"]}, {"denied_commands": ["id"]}])
async def test_any_other_command_is(footprint: Footprint, command: Any, lists: dict[str, list[str]]) -> None:
    assert (await Recording({"command": command}).of(adapter(footprint, **lists))).output[
        "content"
    ] == "hi there\n"


async def test_what_was_checked_is_what_runs(footprint: Footprint, tmp_path: Path) -> None:
    shell = adapter(footprint, cwd=tmp_path, allowed_commands=["echo", "ln"])
    (tmp_path / "echo").symlink_to("/bin/echo")
    result = await Recording("ln -sfn /usr/bin/id echo; ./echo -un").of(shell)
    assert result.output["content"] == "-un\n"
    with pytest.raises(PolicyViolation):
        await Recording("./echo -un").of(shell)


async def test_a_file_that_was_replaced_since_its_check_is_not_executed(
    footprint: Footprint, tmp_path: Path
) -> None:
    shell = adapter(footprint, cwd=tmp_path, denied_commands=["id"])
    tool = tmp_path / "tool"
    tool.hardlink_to(shutil.copy("/bin/echo", tmp_path / "echo"))
    recording = Recording({"command": ["./tool", "checked"]})
    checked = shell._policy.of_argv

    def and_replaced(argv: Any, **where: Any) -> Any:
        launch = checked(argv, **where)
        os.replace(shutil.copy("/usr/bin/id", tmp_path / "other"), tool)
        return launch

    shell._policy.of_argv = and_replaced  # type: ignore[method-assign]
    with pytest.raises(PolicyViolation, match="another file than the one that was checked"):
        await recording.of(shell)
    assert recording.events == []


@pytest.mark.parametrize("env", [{"PATH": "/tmp"}, {"LD_PRELOAD": "x.so"}, {"HARMLESS": "1"}])
async def test_under_a_list_a_run_sets_no_variables(footprint: Footprint, env: dict[str, str]) -> None:
    shell = adapter(footprint, allowed_commands=["echo"])
    with pytest.raises(PolicyViolation, match="cannot set variables"):
        await Recording({"command": "echo", "env": env}).of(shell)
    with pytest.raises(PolicyViolation, match="cannot set variables"):
        await Recording("echo", adapter_opts={"env": env}).of(shell)
    with pytest.raises(PolicyViolation, match="cannot set variables"):
        shell.validate_config({"env": env})


async def test_without_a_list_a_run_may_do_anything(footprint: Footprint) -> None:
    result = await Recording({"command": "echo $(id -u) | cat > /dev/stdout"}).of(adapter(footprint))
    assert result.output["content"] == f"{os.getuid()}\n"


# -- options


def test_on_windows_it_says_what_it_lacks() -> None:
    """And what does not need it can be imported."""
    windows = """
import os, select, signal, socket
posix = {
    os: "fork posix_spawn register_at_fork setsid getsid geteuid getegid getgroups pidfd_open killpg",
    signal: "SIGKILL SIGSTOP SIGHUP SIGQUIT SIGCHLD pthread_sigmask pidfd_send_signal",
    socket: "AF_UNIX send_fds recv_fds MSG_NOSIGNAL",
    select: "poll",
}
for module, names in posix.items():
    for name in names.split():
        delattr(module, name)
from asm_runtime.adapters import ScriptedAdapter, ShellAdapter
ScriptedAdapter()
os.name = "nt"
ShellAdapter()
"""
    done = subprocess.run([sys.executable, "-c", windows], capture_output=True, text=True)
    assert "DependencyMissing: ShellAdapter needs sessions of processes" in done.stderr


def test_adapter_options_are_checked() -> None:
    shell = ShellAdapter()
    shell.validate_config({})
    shell.validate_config({"cwd": "/", "env": {"A": "1"}, "timeout_ms": 5})
    for config in ({"timeout": 5}, {"cwd": 5}, {"env": {"A": 1}}, {"timeout_ms": 0}, {"command": "ls"}):
        with pytest.raises(ValidationError):
            shell.validate_config(config)


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"cwd": 5},
        {"cwd": "a\0"},
        {"env": {"A": 1}},
        {"env": ["A"]},
        {"inherit_env": "PATH"},
        {"inherit_env": [1]},
        {"shell": ""},
        {"timeout_ms": 0},
        {"max_output_bytes": 0},
        {"max_line_bytes": 3},
        {"delta_flush_ms": -1},
        {"stderr_tail_bytes": 0},
        {"stderr_tail_lines": 0},
        {"allowed_commands": "ls"},
        {"denied_commands": [""]},
        {"success_exit_codes": ["0"]},
        {"interrupt_grace_ms": -1},
        {"terminate_grace_ms": None},
        {"drain_grace_ms": 0.5},
    ],
)
def test_a_bad_option_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        ShellAdapter(**options)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        ShellAdapter(working_directory="/")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def test_its_capabilities_say_what_a_command_may_do() -> None:
    capabilities = await ShellAdapter(allowed_commands=["git"]).capabilities()
    assert {each.type for each in capabilities} == {"tool", "code_execution", "file_access", "network_access"}
    assert capabilities[0].config == {"allowed_commands": ["git"]}
