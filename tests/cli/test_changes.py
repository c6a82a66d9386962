"""What can be changed from the shell, and how a run is looked at; ids may be cut short."""

from __future__ import annotations

import signal

import pytest

from asm_runtime.errors import ProviderError
from asm_runtime.records import Event, Run, RunStatus, Session, SessionStatus
from asm_runtime.stores import SQLSessionStore
from tests.cli.conftest import CommandLine, json_lines
from tests.cli.test_run import only_run, read_until

OF_A_RUN = ["show", "cancel"]
OF_A_SESSION = ["runs", "events", "export", "pause", "resume", "complete", "delete", "settle"]


async def filled(store: SQLSessionStore) -> None:
    """Two sessions; one with a run that waits, one with a run that failed at its second attempt."""
    await store.save_session(Session.new(agent_id="a", id="ses_aa11", status="active"))
    await store.save_session(Session.new(agent_id="a", id="ses_aa22", status="active"))
    await store.enqueue_run(Run.new(session_id="ses_aa11", id="run_bb11", input={"prompt": "wait"}))
    await store.enqueue_run(Run.new(session_id="ses_aa22", id="run_bb22", input={"command": "make all"}))
    run = await store.claim_run("ses_aa22")
    assert run is not None
    for attempt in (1, 2):
        data = {"attempt": attempt}
        await store.append_event(
            Event.new(type="run_started", session_id="ses_aa22", run_id=run.id, data=data)
        )
    error = ProviderError("the command exited with code 2", details={"stderr": "no rule\nstop"})
    failed = run.with_status("failed").replace(error=error.to_dict(), token_usage={"input_tokens": 7})
    await store.save_run(failed)


@pytest.fixture
def store(asm: CommandLine) -> tuple[str, str]:
    asm.in_store(filled)
    return ("--store", asm.store)


def session_of(asm: CommandLine, session_id: str) -> Session:
    async def found(store: SQLSessionStore) -> Session:
        return await store.get_session(session_id)

    session: Session = asm.in_store(found)
    return session


# -- ids


@pytest.mark.parametrize("named", ["ses_aa22", "ses_aa2", "aa22", "22"])
def test_the_beginning_or_the_end_of_an_id_is_enough(
    asm: CommandLine, store: tuple[str, str], named: str
) -> None:
    assert asm("runs", named, *store).stdout.split("\t")[0] == "run_bb22"
    (run,) = json_lines(asm("show", named.replace("ses", "run").replace("aa", "bb"), "--json", *store).stdout)
    assert run["id"] == "run_bb22"


@pytest.mark.parametrize("command", OF_A_RUN + OF_A_SESSION)
def test_an_id_that_nothing_has_is_a_message_and_exit_code_1(
    asm: CommandLine, store: tuple[str, str], command: str
) -> None:
    done = asm(command, "nobody", *store)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "nobody" in done.stderr


@pytest.mark.parametrize("command", OF_A_RUN + OF_A_SESSION)
def test_an_id_that_several_have_names_them(asm: CommandLine, store: tuple[str, str], command: str) -> None:
    kind = "run_bb" if command in OF_A_RUN else "ses_aa"
    done = asm(command, kind, *store)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{kind}11" in done.stderr
    assert f"{kind}22" in done.stderr


def test_a_whole_id_is_itself_also_if_another_begins_with_it(
    asm: CommandLine, store: tuple[str, str]
) -> None:
    async def another(store: SQLSessionStore) -> None:
        await store.save_session(Session.new(agent_id="a", id="ses_aa11-and-more"))

    asm.in_store(another)
    assert "run_bb11" in asm("runs", "ses_aa11", *store).stdout


def test_a_run_id_of_several_sessions_needs_the_session(asm: CommandLine, store: tuple[str, str]) -> None:
    async def another(store: SQLSessionStore) -> None:
        await store.enqueue_run(Run.new(session_id="ses_aa22", id="run_bb11", input="x"))

    asm.in_store(another)
    assert asm("show", "run_bb11", *store).returncode == 1
    (run,) = json_lines(asm("show", "run_bb11", "--session", "22", "--json", *store).stdout)
    assert run["session_id"] == "ses_aa22"


# -- runs


def test_a_run_is_shown_with_its_attempts_its_input_and_its_error(
    asm: CommandLine, store: tuple[str, str]
) -> None:
    shown = asm("show", "run_bb22", *store).stdout.splitlines()
    facts = dict(line.split("\t", 1) for line in shown if "\t" in line)
    assert facts["status"] == "failed"
    assert facts["tokens"] == "7 input_tokens"
    attempts = [line.split("\t")[1] for line in shown if line.startswith("attempt")]
    assert [attempt.split(",")[0] for attempt in attempts] == ["1", "2"]
    texts = shown[shown.index("input") :]
    assert texts == [
        *("input", "make all"),
        *("error", "provider_error: the command exited with code 2"),
        *("stderr", "no rule", "stop"),
    ]


def test_a_run_is_shown_with_its_output(asm: CommandLine) -> None:
    asm("run", "echo one; echo two", "--store", asm.store)
    run = asm.in_store(only_run)
    shown = asm("show", run.id[-6:], "--store", asm.store).stdout
    assert shown.endswith("\noutput\none\ntwo\n")
    assert "completed" in shown


def test_a_run_is_shown_with_an_output_that_is_no_text_and_its_cost(
    asm: CommandLine, store: tuple[str, str]
) -> None:
    async def done(opened: SQLSessionStore) -> None:
        run = await opened.claim_run("ses_aa11")
        assert run is not None
        ended = run.with_status("completed").replace(output={"answer": True}, cost_usd=0.25)
        await opened.save_run(ended)

    asm.in_store(done)
    shown = asm("show", "run_bb11", *store).stdout
    assert shown.endswith('\ncost\t0.25 USD\nattempt\t1\ninput\nwait\noutput\n{"answer":true}\n')


def test_a_run_that_waits_is_cancelled(asm: CommandLine, store: tuple[str, str]) -> None:
    done = asm("cancel", "run_bb11", *store)
    assert (done.returncode, done.stdout.split("\t")[:2]) == (0, ["run_bb11", "cancelled"])
    again = asm("cancel", "run_bb11", *store)
    assert (again.returncode, "ended already" in again.stderr) == (0, True)


async def test_a_run_of_another_process_is_cancelled(asm: CommandLine) -> None:
    process = await asm.begin("run", "echo ready; sleep 60", "--store", asm.store)
    await read_until(process, b"ready\n")
    canceller = await asm.begin("cancel", "run_", "--json", "--store", asm.store)
    out, _ = await canceller.communicate()
    assert json_lines(out.decode())[0]["status"] == "cancelled"
    await process.communicate()
    assert process.returncode == 130


async def killed_at_work(asm: CommandLine) -> None:
    """Leave a run whose process has died."""
    process = await asm.begin("run", "echo ready; sleep 60", "--store", asm.store)
    await read_until(process, b"ready\n")
    process.send_signal(signal.SIGKILL)
    await process.communicate()


@pytest.mark.parametrize(("option", "status"), [((), RunStatus.FAILED), (("--requeue",), RunStatus.PENDING)])
async def test_what_a_dead_process_left_is_settled(
    asm: CommandLine, option: tuple[str, ...], status: RunStatus
) -> None:
    await killed_at_work(asm)
    settling = await asm.begin("settle", *option, "--json", "--store", asm.store)
    out, _ = await settling.communicate()
    (run,) = json_lines(out.decode())
    assert run["status"] == status
    assert (run["error"] and run["error"]["code"]) == ("orphaned" if status is RunStatus.FAILED else None)
    again = await asm.begin("settle", "--store", asm.store)
    assert await again.communicate() == (b"", b"")


def test_only_the_orphans_of_the_session_that_is_named_are_settled(
    asm: CommandLine, store: tuple[str, str]
) -> None:
    async def claimed(opened: SQLSessionStore) -> None:
        assert await opened.claim_run("ses_aa11") is not None  # and then its store has stopped

    asm.in_store(claimed)
    assert asm("settle", "ses_aa22", *store).stdout == ""
    (run,) = json_lines(asm("settle", "ses_aa11", "--json", *store).stdout)
    assert (run["id"], run["status"]) == ("run_bb11", "failed")


# -- sessions


def test_a_session_is_paused_resumed_and_completed(asm: CommandLine, store: tuple[str, str]) -> None:
    for command, status in (("pause", "paused"), ("resume", "active"), ("complete", "completed")):
        done = asm(command, "ses_aa22", *store)
        assert done.stdout.split("\t")[:2] == ["ses_aa22", status], done.stderr
        assert session_of(asm, "ses_aa22").status == status
    refused = asm("pause", "ses_aa22", *store)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)


def test_a_session_with_open_runs_does_not_complete(asm: CommandLine, store: tuple[str, str]) -> None:
    refused = asm("complete", "ses_aa11", *store)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert session_of(asm, "ses_aa11").status is SessionStatus.ACTIVE


def test_a_session_is_deleted_when_that_is_confirmed(asm: CommandLine, store: tuple[str, str]) -> None:
    asked = asm("delete", "ses_aa22", *store)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "ses_aa22 (runs: 1, events: 2)" in asked.stderr
    assert session_of(asm, "ses_aa22").status is SessionStatus.ACTIVE
    assert asm("delete", "ses_aa22", "--yes", *store).returncode == 0
    assert [line.split("\t")[0] for line in asm("sessions", *store).stdout.splitlines()] == ["ses_aa11"]
    assert asm("events", "ses_aa22", *store).returncode == 1
    assert asm("delete", "ses_aa11", "--yes", *store).returncode == 0  # its run waits, and nobody works on it
    assert asm("sessions", *store).stdout == ""


async def test_a_session_that_is_being_worked_on_is_not_deleted(asm: CommandLine) -> None:
    process = await asm.begin("run", "echo ready; sleep 60", "--store", asm.store)
    await read_until(process, b"ready\n")
    deleting = await asm.begin("delete", "ses_", "--yes", "--store", asm.store)
    _, err = await deleting.communicate()
    assert (deleting.returncode, b"is being executed" in err) == (1, True)
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    deleting = await asm.begin("delete", "ses_", "--yes", "--store", asm.store)
    assert await deleting.communicate() == (b"", b"")
