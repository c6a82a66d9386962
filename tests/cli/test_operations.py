"""What can be asked of a store from the shell."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from asm_runtime.records import Event, EventType, Run, Session
from asm_runtime.stores import SQLSessionStore
from tests.cli.conftest import COMMAND, CommandLine, json_lines

READERS = [("sessions",), ("runs", "s"), ("events", "s"), ("tail", "s"), ("export", "s")]


async def filled(store: SQLSessionStore) -> None:
    """Two sessions; one with three runs, one of them done, and five events."""
    await store.save_session(Session.new(agent_id="writer", id="s", status="active", tags=["a", "b"]))
    await store.save_session(Session.new(agent_id="reader", id="t", status="paused"))
    for number in (1, 2, 3):
        await store.enqueue_run(Run.new(session_id="s", id=f"r{number}", input={"prompt": f"{number}"}))
    run = await store.claim_run("s")
    assert run is not None
    await store.save_run(run.with_status("completed"))
    await store.append_events([event(number) for number in range(1, 6)])


def event(number: int) -> Event:
    kind = EventType.RUN_COMPLETED if number == 4 else EventType.CUSTOM
    data = {"name": "n", "number": number, "text": "tab\t line\n escape \x1b[31m"}
    return Event.new(type=kind, session_id="s", run_id="r1", data=data)


def fields(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


@pytest.fixture
def store(asm: CommandLine) -> tuple[str, str]:
    """The option that names a store with something in it."""
    asm.in_store(filled)
    return ("--store", asm.store)


def test_sessions_are_listed_oldest_first_with_tabs_between(asm: CommandLine, store: tuple[str, str]) -> None:
    rows = fields(asm("sessions", *store).stdout)
    assert [row[:3] for row in rows] == [["s", "active", "writer"], ["t", "paused", "reader"]]
    assert rows[0][4] == "a,b"


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        (("--status", "paused"), ["t"]),
        (("--status", "paused", "--status", "active"), ["s", "t"]),
        (("--agent", "writer"), ["s"]),
        (("--limit", "1"), ["s"]),
        (("--last", "1"), ["t"]),
        (("--last", "5"), ["t", "s"]),
        (("--last", "1", "--agent", "writer"), ["s"]),
        (("--since", "1d"), ["s", "t"]),
        (("--since", "2100-01-01T00:00"), []),
    ],
)
def test_sessions_can_be_filtered(
    asm: CommandLine, store: tuple[str, str], arguments: tuple[str, ...], listed: list[str]
) -> None:
    assert [row[0] for row in fields(asm("sessions", *arguments, *store).stdout)] == listed


@pytest.mark.parametrize(
    "arguments", [*READERS[:3], ("export", "s"), ("show", "r1"), ("tail", "s", "--run", "r1")]
)
def test_a_command_that_reads_makes_and_changes_no_file(
    asm: CommandLine, store: tuple[str, str], arguments: tuple[str, ...]
) -> None:
    def files() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in asm.folder.rglob("*")
        } | {"": (asm.folder.stat().st_mtime_ns, 0)}

    before = files()
    assert asm(*arguments, *store).returncode == 0
    assert files() == before


def test_sessions_as_json_are_whole_records(asm: CommandLine, store: tuple[str, str]) -> None:
    first = json_lines(asm("sessions", "--json", *store).stdout)[0]
    assert Session.from_dict(first).tags == ["a", "b"]


def test_more_sessions_than_a_page_are_all_listed_once(asm: CommandLine) -> None:
    async def many(store: SQLSessionStore) -> None:
        for number in range(1_100):
            await store.save_session(Session.new(agent_id="a", id=f"s{number:04}"))

    asm.in_store(many)
    listed = [row[0] for row in fields(asm("sessions", "--store", asm.store).stdout)]
    assert listed == [f"s{number:04}" for number in range(1_100)]


def test_runs_are_listed_in_their_order(asm: CommandLine, store: tuple[str, str]) -> None:
    rows = fields(asm("runs", "s", *store).stdout)
    assert [row[:3] for row in rows] == [
        ["r1", "completed", "1"],
        ["r2", "pending", "0"],
        ["r3", "pending", "0"],
    ]
    assert rows[1][5] == "2"


def test_runs_can_be_filtered_and_are_json_if_asked(asm: CommandLine, store: tuple[str, str]) -> None:
    runs = json_lines(asm("runs", "s", "--status", "pending", "--limit", "1", "--json", *store).stdout)
    assert [Run.from_dict(run).id for run in runs] == ["r2"]


def test_the_last_runs_are_listed_newest_first(asm: CommandLine, store: tuple[str, str]) -> None:
    rows = fields(asm("runs", "s", "--last", "2", *store).stdout)
    assert [row[0] for row in rows] == ["r3", "r2"]
    assert asm("runs", "s", "--since", "2100-01-01", *store).stdout == ""


def test_an_event_is_one_line_whatever_its_data(asm: CommandLine, store: tuple[str, str]) -> None:
    done = asm("events", "s", *store)
    rows = fields(done.stdout)
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row[2] for row in rows] == ["custom", "custom", "custom", "run_completed", "custom"]
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (("--after", "3"), [4, 5]),
        (("--limit", "2"), [1, 2]),
        (("--after", "1", "--limit", "2"), [2, 3]),
        (("--type", "run_completed"), [4]),
        (("--type", "run_completed", "--type", "custom"), [1, 2, 3, 4, 5]),
        (("--run", "r1", "--after", "4"), [5]),
        (("--after", "5"), []),
        (("--follow", "--limit", "3"), [1, 2, 3]),
        (("--last", "2"), [4, 5]),
        (("--last", "9"), [1, 2, 3, 4, 5]),
        (("--last", "2", "--type", "custom"), [3, 5]),
        (("--last", "3", "--after", "4"), [5]),
        (("--follow", "--last", "2", "--limit", "2"), [4, 5]),
        (("--since", "1h"), [1, 2, 3, 4, 5]),
        (("--since", "2100-01-01"), []),
        (("--follow", "--since", "1h", "--limit", "2"), [1, 2]),
        (("--run", "r"), None),
        (("--run", "nobody"), None),
    ],
)
def test_events_can_be_filtered(
    asm: CommandLine, store: tuple[str, str], arguments: tuple[str, ...], numbers: list[int] | None
) -> None:
    done = asm("events", "s", *arguments, "--json", *store)
    events = json_lines(done.stdout)
    assert [event["sequence_number"] for event in events] == (numbers or [])
    assert (done.returncode, bool(done.stderr)) == ((1, True) if numbers is None else (0, False))


def test_an_unknown_event_type_is_a_wrong_call(asm: CommandLine, store: tuple[str, str]) -> None:
    assert asm("events", "s", "--type", "bogus", *store).returncode == 2


def test_more_events_than_a_page_are_all_printed_once(asm: CommandLine, store: tuple[str, str]) -> None:
    async def many(store: SQLSessionStore) -> None:
        await store.append_events([Event.new(type="custom", session_id="s") for _ in range(1_200)])

    asm.in_store(many)
    events = json_lines(asm("events", "s", "--json", *store).stdout)
    assert [event["sequence_number"] for event in events] == list(range(1, 1_206))


@pytest.mark.parametrize("command", [("events", "s", "--follow", "--after", "3"), ("tail", "s", "-n", "2")])
async def test_following_shows_what_another_process_appends(
    asm: CommandLine, command: tuple[str, ...]
) -> None:
    async with SQLSessionStore(f"sqlite:///{asm.folder / 'test.db'}") as store:
        await filled(store)
        process = await asm.begin(*command, "--json", "--store", asm.store)
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(2)]
        await store.append_event(event(6))
        lines.append(await process.stdout.readline())
        await store.append_events([event(7), event(8)])
        lines += [await process.stdout.readline() for _ in range(2)]
        assert [found["sequence_number"] for found in json_lines(b"".join(lines).decode())] == [4, 5, 6, 7, 8]
        process.send_signal(signal.SIGINT)
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 130


async def test_tail_of_a_run_ends_with_the_run(asm: CommandLine) -> None:
    async with SQLSessionStore(f"sqlite:///{asm.folder / 'test.db'}") as store:
        await filled(store)
        await store.append_event(Event.new(type="custom", session_id="s", run_id="r2"))
        process = await asm.begin("tail", "s", "-n", "1", "--run", "r2", "--json", "--store", asm.store)
        assert process.stdout is not None
        first = await process.stdout.readline()
        await store.append_event(Event.new(type="run_completed", session_id="s", run_id="r3"))
        await store.append_event(Event.new(type="run_completed", session_id="s", run_id="r2"))
        rest, _ = await process.communicate()
        shown = json_lines((first + rest).decode())
        assert [(found["run_id"], found["type"]) for found in shown] == [
            ("r2", "custom"),
            ("r2", "run_completed"),
        ]
        assert process.returncode == 0


async def test_tail_of_a_run_ends_with_it_also_if_its_end_is_not_shown(asm: CommandLine) -> None:
    async with SQLSessionStore(f"sqlite:///{asm.folder / 'test.db'}") as store:
        await filled(store)
        await store.append_event(Event.new(type="custom", session_id="s", run_id="r2"))
        process = await asm.begin("tail", "s", "--run", "r2", "--type", "custom", "--store", asm.store)
        assert process.stdout is not None
        assert await process.stdout.readline()
        await store.append_event(Event.new(type="run_completed", session_id="s", run_id="r2"))
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0


async def test_what_follows_a_log_ends_with_its_reader(asm: CommandLine) -> None:
    async with SQLSessionStore(f"sqlite:///{asm.folder / 'test.db'}") as store:
        await filled(store)
        for command in ("tail s -n 3", "events s --follow"):
            shell = await asyncio.create_subprocess_exec(
                *("sh", "-c", f"$ASM {command} --store {asm.store} | head -n 1"),
                cwd=asm.folder,
                env=asm.environment | {"ASM": " ".join(COMMAND)},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await shell.communicate()
            assert (len(out.splitlines()), err) == (1, b"")


def test_tail_can_show_more_than_a_page_and_more_than_there_is(
    asm: CommandLine, store: tuple[str, str]
) -> None:
    async def many(store: SQLSessionStore) -> None:
        await store.append_events([Event.new(type="custom", session_id="s") for _ in range(1_200)])
        await store.append_event(Event.new(type="run_completed", session_id="s", run_id="r1"))

    asm.in_store(many)
    for lines, first in ((1_100, 107), (5_000, 1)):
        done = asm("events", "s", "--last", str(lines), "--json", *store)
        assert [event["sequence_number"] for event in json_lines(done.stdout)] == list(range(first, 1_207))


def test_tail_of_a_run_that_has_ended_shows_its_last_events(asm: CommandLine, store: tuple[str, str]) -> None:
    done = asm("tail", "s", "-n", "3", "--run", "r1", "--json", *store)
    assert [event["sequence_number"] for event in json_lines(done.stdout)] == [3, 4, 5]
    assert done.returncode == 0


def test_more_runs_than_a_page_are_listed_and_exported_once_in_order(asm: CommandLine) -> None:
    async def many(store: SQLSessionStore) -> None:
        await asyncio.gather(*(store.enqueue_run(Run.new(session_id="s", id=id)) for id in expected))
        await store.append_event(event(1))

    expected = [f"{number:04}" for number in range(1_100)]
    asm.in_store(many)
    where = ("--store", asm.store)
    assert [row[0] for row in fields(asm("runs", "s", "--limit", "700", *where).stdout)] == expected[:700]
    assert [run["id"] for run in json_lines(asm("runs", "s", "--json", *where).stdout)] == expected
    *runs, last = json_lines(asm("export", "s", *where).stdout)
    assert [line["run"]["id"] for line in runs] == expected
    assert last["event"]["sequence_number"] == 1


def test_an_export_is_every_record_as_json(asm: CommandLine, store: tuple[str, str]) -> None:
    lines = json_lines(asm("export", "s", *store).stdout)

    async def stored(store: SQLSessionStore) -> list[dict[str, Any]]:
        return [
            {"session": (await store.get_session("s")).to_dict()},
            *({"run": run.to_dict()} for run in await store.list_runs("s")),
            *({"event": event.to_dict()} for event in await store.get_events("s")),
        ]

    assert lines == asm.in_store(stored)


def test_a_log_without_a_session_row_can_be_read(asm: CommandLine) -> None:
    async def log_only(store: SQLSessionStore) -> None:
        await store.append_event(event(1))

    asm.in_store(log_only)
    assert len(asm("events", "s", "--store", asm.store).stdout.splitlines()) == 1
    assert [set(line) for line in json_lines(asm("export", "s", "--store", asm.store).stdout)] == [{"event"}]


@pytest.mark.parametrize("command", READERS[1:])
def test_an_unknown_session_is_exit_code_1(
    asm: CommandLine, store: tuple[str, str], command: tuple[str, ...]
) -> None:
    done = asm(command[0], "nobody", *store)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "nobody" in done.stderr


@pytest.mark.parametrize("command", READERS)
def test_reading_a_store_that_is_not_there_makes_none(asm: CommandLine, command: tuple[str, ...]) -> None:
    done = asm(*command, "--store", "sqlite:///absent.db")
    assert done.returncode == 3
    assert "absent.db" in done.stderr
    assert not (asm.folder / "absent.db").exists()


def test_reading_a_file_that_is_no_database_is_exit_code_3(asm: CommandLine) -> None:
    (asm.folder / "text.db").write_text("this is no database, and it is longer than a header. " * 9)
    done = asm("sessions", "--store", "text.db")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


def test_reading_a_database_of_another_kind_asks_for_the_migration_and_makes_no_tables(
    asm: CommandLine,
) -> None:
    (asm.folder / "empty.db").touch()
    done = asm("sessions", "--store", "sqlite:///empty.db")
    assert done.returncode == 3
    assert "asm-runtime migrate sqlite:///empty.db" in done.stderr
    assert asm("migrate", "sqlite:///empty.db").returncode == 0
    assert asm("sessions", "--store", "sqlite:///empty.db").returncode == 0


def test_a_schema_can_be_taken_back_and_brought_up_again(asm: CommandLine, store: tuple[str, str]) -> None:
    refused = asm("migrate", asm.store, "--down", "--to", "base")
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    assert asm("sessions", *store).returncode == 0
    assert asm("migrate", "--store", asm.store, "--down", "--to", "base", "--yes").returncode == 0
    assert asm("sessions", *store).returncode == 3
    assert asm("migrate", asm.store).returncode == 0
    assert asm("sessions", *store).returncode == 0


async def test_a_schema_that_a_process_works_with_is_not_taken_back(asm: CommandLine) -> None:
    async with SQLSessionStore(f"sqlite:///{asm.folder / 'test.db'}") as store:
        await filled(store)
        migration = await asm.begin("migrate", asm.store, "--down", "--to", "base", "--yes")
        _, err = await migration.communicate()
        assert (migration.returncode, err.splitlines()) == (
            1,
            [b"asm-runtime: another process uses the database: stop it first"],
        )
        assert len(await store.get_events("s")) == 5


def test_a_reader_that_leaves_early_is_no_error_worth_a_traceback(
    asm: CommandLine, store: tuple[str, str]
) -> None:
    async def many(store: SQLSessionStore) -> None:
        await store.append_events([Event.new(type="custom", session_id="s") for _ in range(3_000)])

    asm.in_store(many)
    done = asm.shell(f"$ASM events s --store {asm.store} | head -n 1")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
