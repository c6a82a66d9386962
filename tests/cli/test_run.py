"""`asm-runtime run`: one run, shown while it runs, its end as the exit code."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
from asyncio.subprocess import Process

import pytest

from asm_runtime.records import EventType, Run, RunStatus, Session
from asm_runtime.stores import SQLSessionStore
from tests.cli.conftest import COMMAND, CommandLine, json_lines


async def only_run(store: SQLSessionStore) -> Run:
    (session,) = await store.list_sessions()
    (run,) = await store.list_runs(session.id)
    return run


async def read_until(process: Process, text: bytes) -> bytes:
    assert process.stdout is not None
    read = b""
    while text not in read:
        line = await process.stdout.readline()
        assert line, read
        read += line
    return read


def test_stdout_is_what_the_command_prints_and_nothing_else(asm: CommandLine) -> None:
    done = asm("run", "echo one; echo two", "--store", asm.store)
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n")


def test_in_a_pipe_it_is_exact(asm: CommandLine) -> None:
    said = "no end", "\r\n\n a\tb ", "\x1b[1m"
    script = "; sleep 0.01; printf '%s' err >&2; ".join(f"printf '%s' '{text}'" for text in said)
    done = asm("run", script, "--quiet", "--store", asm.store)
    assert (done.stdout, done.stderr) == ("".join(said), "errerr")


def test_what_the_command_prints_on_stderr_goes_to_stderr(asm: CommandLine) -> None:
    done = asm("run", "echo out; echo err >&2", "--quiet", "--store", asm.store)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_several_words_are_a_command_and_its_arguments(asm: CommandLine) -> None:
    done = asm("run", "--store", asm.store, "--", "printf", "%s|", "a b", "$HOME", "-n")
    assert done.stdout == "a b|$HOME|-n|"


def test_the_input_can_be_a_file(asm: CommandLine) -> None:
    (asm.folder / "script.sh").write_text("for i in 1 2; do\n  echo $i\ndone\n")
    assert asm("run", "--file", "script.sh", "--store", asm.store).stdout == "1\n2\n"


@pytest.mark.parametrize("arguments", [(), ("--file", "-")])
def test_the_input_can_be_standard_input(asm: CommandLine, arguments: tuple[str, ...]) -> None:
    assert asm("run", *arguments, "--store", asm.store, stdin="echo piped\n").stdout == "piped\n"


def test_the_input_can_be_the_adapters_own_json(asm: CommandLine) -> None:
    done = asm("run", "--input-json", '{"command": ["echo", "as json"]}', "--store", asm.store)
    assert done.stdout == "as json\n"


def test_the_scripted_adapter_echoes_its_prompt(asm: CommandLine) -> None:
    done = asm("run", "--adapter", "scripted", "say", "this", "--store", asm.store)
    assert done.stdout == "say this"


def test_the_command_sees_the_environment_of_the_shell_it_is_typed_in(asm: CommandLine) -> None:
    assert asm("run", "echo $MINE", "--store", asm.store, MINE="mine").stdout == "mine\n"


def test_output_that_is_cut_off_is_said_to_be(asm: CommandLine) -> None:
    done = asm("run", "yes $(seq 300) | head -c 2000000", "--store", asm.store)
    assert len(done.stdout) == 1_048_576
    assert "longer than what is kept" in done.stderr


def test_a_failed_run_has_the_commands_exit_code_and_its_reason_on_stderr(asm: CommandLine) -> None:
    done = asm("run", "echo before; exit 3", "--store", asm.store)
    assert (done.returncode, done.stdout) == (3, "before\n")
    assert "failed" in done.stderr
    assert "3" in done.stderr.splitlines()[-1]


def test_a_command_that_died_of_a_signal_has_the_exit_code_of_a_shell(asm: CommandLine) -> None:
    assert asm("run", "kill -TERM $$", "--store", asm.store).returncode == 128 + signal.SIGTERM


def test_a_run_that_failed_without_a_command_is_exit_code_1(asm: CommandLine) -> None:
    assert asm("run", "--store", asm.store, "--", "no-such-command", "x").returncode == 1


def test_what_is_piped_goes_to_the_command(asm: CommandLine) -> None:
    assert asm("run", "tr a-z A-Z", "--store", asm.store, stdin="héllo\n").stdout == "HéLLO\n"
    (asm.folder / "text").write_text("from a file")
    assert asm.shell(f"$ASM run 'cat; echo' --store {asm.store} <text").stdout == "from a file\n"


@pytest.mark.parametrize("said", ["yes | head -c 2000000", "printf '\\377'"])
def test_a_standard_input_that_cannot_be_kept_is_a_wrong_call(asm: CommandLine, said: str) -> None:
    done = asm.shell(f"{said} | $ASM run cat --store {asm.store}")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "standard input" in done.stderr


def test_a_run_that_takes_too_long_is_exit_code_124(asm: CommandLine) -> None:
    done = asm("run", "sleep 60", "--timeout-ms", "200", "--store", asm.store)
    assert done.returncode == 124
    assert asm.in_store(only_run).status == RunStatus.TIMEOUT


def test_json_is_every_event_of_the_run_and_nothing_else(asm: CommandLine) -> None:
    done = asm("run", "echo hello", "--json", "--store", asm.store)
    events = json_lines(done.stdout)
    run = asm.in_store(only_run)
    assert [event["type"] for event in (events[0], events[-1])] == ["run_started", "run_completed"]
    assert {event["run_id"] for event in events} == {run.id}
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_a_run_can_go_on_in_a_session(asm: CommandLine) -> None:
    asm("run", "echo one", "--store", asm.store)
    session_id = asm.in_store(only_run).session_id
    done = asm("run", "echo two", "--session", session_id[-8:], "--store", asm.store)
    assert done.stdout == "two\n"

    async def runs(store: SQLSessionStore) -> list[Run]:
        return await store.list_runs(session_id)

    assert [run.input for run in asm.in_store(runs)] == [{"command": "echo one"}, {"command": "echo two"}]


def test_a_session_that_is_not_there_is_exit_code_1(asm: CommandLine) -> None:
    done = asm("run", "ls", "--session", "nobody", "--store", asm.store)
    assert done.returncode == 1
    assert "nobody" in done.stderr


def test_a_session_that_has_ended_takes_no_run(asm: CommandLine) -> None:
    async def ended(store: SQLSessionStore) -> None:
        await store.save_session(Session.new(agent_id="a", id="over", status="completed"))

    asm.in_store(ended)
    done = asm("run", "ls", "--session", "over", "--store", asm.store)
    assert done.returncode == 1
    assert "completed" in done.stderr


def test_a_paused_session_takes_no_run_that_would_wait_for_ever(asm: CommandLine) -> None:
    async def paused(store: SQLSessionStore) -> None:
        await store.save_session(Session.new(agent_id="a", id="held", status="paused"))

    asm.in_store(paused)
    done = asm("run", "ls", "--session", "held", "--store", asm.store)
    assert (done.returncode, "paused" in done.stderr) == (1, True)


def test_without_a_store_the_users_own_file_is_used(asm: CommandLine) -> None:
    asm("run", "echo hello")
    assert (asm.folder / "state" / "asm-runtime" / "asm.db").is_file()
    assert "shell" in asm("sessions").stdout


def test_the_environment_names_a_store_and_the_option_another(asm: CommandLine) -> None:
    asm("run", "echo hello", ASM_STORE="named.db")
    asm("run", "echo hello", "--store", "other.db", ASM_STORE="named.db")
    assert (asm.folder / "named.db").is_file()
    assert (asm.folder / "other.db").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interrupt_cancels_the_run_and_leaves_no_process(
    asm: CommandLine, number: signal.Signals
) -> None:
    process = await asm.begin("run", "echo $$; sleep 60; echo never", "--store", asm.store)
    shell = int(await read_until(process, b"\n"))
    process.send_signal(number)
    out, err = await process.communicate()
    assert process.returncode == 130
    assert b"never" not in out
    assert b"cancelled" in err
    with pytest.raises(ProcessLookupError):
        os.kill(shell, 0)
    async with SQLSessionStore(f"sqlite:///{asm.folder / 'test.db'}") as store:
        run = await only_run(store)
        assert run.status == RunStatus.CANCELLED
        (end,) = await store.get_events(run.session_id, run_id=run.id, type=EventType.RUN_CANCELLED)
        assert end.is_terminal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_that_was_turned_off_stays_so(asm: CommandLine, number: signal.Signals) -> None:
    """`nohup` turns off SIGHUP, a shell without job control SIGINT for what it runs behind it."""
    os.mkfifo(asm.folder / "gate")
    process = await asm.begin(
        "run",
        "echo ready; cat gate",
        "--store",
        asm.store,
        before=f"trap '' {number.name.removeprefix('SIG')}",
    )
    await read_until(process, b"\n")
    process.send_signal(number)
    await asyncio.to_thread((asm.folder / "gate").write_text, "done")
    out, err = await process.communicate()
    assert (process.returncode, out) == (0, b"done"), err


def test_a_terminal_that_is_closed_cancels_the_run(asm: CommandLine) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(asm.folder)
        os.execve(
            sys.executable,
            (*COMMAND, "run", "echo pid $$; sleep 60", "--store", asm.store),
            asm.environment,
        )
    sent = b""
    while (found := re.search(rb"pid (\d+)\r\n", sent)) is None:
        sent += os.read(terminal, 1_024)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (130, 141)
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[1]), 0)
    assert asm.in_store(only_run).status == RunStatus.CANCELLED


def test_a_run_whose_output_nobody_reads_any_more_is_cancelled(asm: CommandLine) -> None:
    with asm.popen("run", "while echo line; do sleep 0.01; done", "--store", asm.store) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        assert process.wait() == 141
    assert asm.in_store(only_run).status == RunStatus.CANCELLED
