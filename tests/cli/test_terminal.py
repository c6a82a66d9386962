"""Nothing that a model, a command or another user of the store wrote is obeyed by a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from asm_runtime.cli.escapes import as_json, as_lines, as_one_line
from asm_runtime.records import Event, Run, Session
from asm_runtime.stores import SQLSessionStore
from tests.cli.conftest import CommandLine, Forks, json_lines

EVIL = (
    "\x1b]0;title\x07 \x1b[35;7mred \x9b35;7m \x9d0;c1\x9c \x7f \u202egnp.exe\u202c \u2066x\u2069 "
    "\u2028 \u2029 \u200b \U000e0041 \r\nfake line\t\x08\x0c\x85 end"
)
MARK = re.compile(r"\x1b\[([0-9;]*)m")
OURS = {"0", "1", "2", "31", "32", "33", "36", "1;31", "1;32", "1;33"}
"""The colours that the command itself uses."""

READERS = [
    ("sessions",),
    ("runs", EVIL),
    ("events", EVIL),
    ("tail", EVIL, "--run", EVIL),
    ("events", EVIL, "--json"),
    ("sessions", "--json"),
    ("runs", EVIL, "--json"),
    ("export", EVIL),
    ("show", EVIL, "--json"),
]


async def filled(store: SQLSessionStore) -> None:
    """Evil wherever a text may stand."""
    await store.save_session(Session.new(agent_id=EVIL, id=EVIL, status="active", tags=[EVIL]))
    await store.enqueue_run(Run.new(session_id=EVIL, id="other", input={EVIL: EVIL}))
    await store.enqueue_run(Run.new(session_id=EVIL, id=EVIL, input="x"))
    claimed = await store.claim_run(EVIL, run_id=EVIL)
    assert claimed is not None
    await store.enqueue_run(Run.new(session_id=EVIL, id="orphan", input=EVIL))
    orphan = await store.claim_run(EVIL, run_id="orphan")
    assert orphan is not None
    await store.save_run(orphan.replace(owner=EVIL))
    error = {"code": EVIL, "message": EVIL, "details": {EVIL: EVIL}, "retryable": False}
    await store.save_run(claimed.with_status("failed").replace(error=error))
    odd = Run.new(session_id=EVIL, id="odd", input="x").with_status("failed")
    await store.save_run(odd.replace(error={"why": EVIL}))
    data = {EVIL: [EVIL], "name": EVIL}
    for kind in ("custom", "run_failed"):
        await store.append_event(
            Event.new(type=kind, id=f"{kind} {EVIL}", session_id=EVIL, run_id=EVIL, data=data)
        )


def assert_safe(sent: bytes, *, colours: bool = False, live: bool = False) -> None:
    """Hold what a terminal was sent to be safe; `live`: what a run says may have lines and tabs."""
    text = sent.decode().replace("\r\n", "\n")  # the terminal's own line ends
    for style in MARK.findall(text):
        assert colours
        assert style in OURS
    text = MARK.sub("", text)
    assert as_lines(text) == text
    if not live:
        for line in text.splitlines():
            assert as_one_line(line) == line
            assert not line.startswith("fake line")


@pytest.fixture(scope="module")
def asm(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> CommandLine:
    asm = CommandLine(tmp_path_factory.mktemp("terminal"), forks)
    asm.in_store(filled)
    return asm


@pytest.mark.parametrize("colours", [True, False], ids=["colours", "plain"])
def test_what_a_store_holds_is_shown_and_not_obeyed(asm: CommandLine, colours: bool) -> None:
    commands = [(*command, "--store", asm.store) for command in READERS]
    for sent in asm.each_on_terminal(commands, TERM="xterm" if colours else "dumb"):
        assert_safe(sent, colours=colours)
        assert b"title" in sent


def test_what_is_changed_is_shown_and_not_obeyed(tmp_path: Path, forks: Forks) -> None:
    asm = CommandLine(tmp_path, forks)
    asm.in_store(filled)
    changes = [("settle",), ("pause", EVIL), ("resume", EVIL), ("cancel", EVIL), ("show", EVIL)]
    for sent in asm.each_on_terminal([(*command, "--store", asm.store) for command in changes], TERM="dumb"):
        assert_safe(sent, live=True)
        assert b"title" in sent


@pytest.mark.parametrize("command", READERS[1:4], ids=lambda command: command[0])
def test_a_pipe_gets_lines_that_are_as_safe(asm: CommandLine, command: tuple[str, ...]) -> None:
    done = asm(*command, "--store", asm.store)
    assert done.stderr == ""
    assert as_lines(done.stdout) == done.stdout
    assert "title" in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.startswith("fake line")]


def test_json_is_exact_all_the_same(asm: CommandLine) -> None:
    (session,) = json_lines(asm("sessions", "--json", "--store", asm.store).stdout)
    assert Session.from_dict(session).tags == [EVIL]
    events = json_lines(asm("events", EVIL, "--json", "--store", asm.store).stdout)
    assert [event["data"] for event in events] == [{EVIL: [EVIL], "name": EVIL}] * 2
    rows = asm("events", EVIL, "--store", asm.store).stdout.splitlines()
    assert [json.loads(row.split("\t")[4]) for row in rows] == [{EVIL: [EVIL], "name": EVIL}] * 2


WRONG = [
    (EVIL,),
    ("sessions", EVIL),
    ("sessions", f"--{EVIL}"),
    ("sessions", "--limit", EVIL),
    ("sessions", "--status", EVIL),
    ("sessions", "--store", EVIL),
    ("sessions", "--store", f"sqlite:///{EVIL}"),
    ("sessions", "--store", f"{EVIL}://x"),
    ("runs", f"nobody {EVIL}"),
    ("events", f"nobody {EVIL}"),
    ("events", "s", "--type", EVIL),
    ("export", f"nobody {EVIL}"),
    ("tail", EVIL, "--run", f"nobody {EVIL}"),
    ("run", "--file", EVIL),
    ("run", "--session", f"nobody {EVIL}", "ls"),
    ("run", "--input-json", f'["{EVIL}'),
    ("run", "--adapter", EVIL, "ls"),
    ("migrate", f"sqlite:///{EVIL}", "--down", "--to", EVIL),
    ("migrate", "--to", EVIL),
    ("demo", "--file", "/dev/null/" + EVIL),
]


def test_what_is_wrong_is_said_in_one_line_that_is_safe(asm: CommandLine) -> None:
    own = {"--store", "demo", "migrate"}
    commands = [command if own & set(command) else (*command, "--store", asm.store) for command in WRONG]
    for command, sent in zip(commands, asm.each_on_terminal(commands), strict=True):
        assert_safe(sent)
        assert len(sent.splitlines()) == 1, command
        assert sent.startswith(b"asm-runtime: ")


@pytest.mark.parametrize(
    "trouble",
    ["logging.getLogger('asm_runtime.manager').warning('session %s', evil)", "raise RuntimeError(evil)"],
)
def test_what_is_logged_and_what_nobody_expected_is_safe(asm: CommandLine, trouble: str) -> None:
    program = (
        "import logging\n"
        "from asm_runtime.cli import main, operations\n"
        f"evil = {EVIL!r}\n"
        "async def list_sessions(*_, **__):\n"
        f"    {trouble}\n"
        "operations.list_sessions = list_sessions\n"
        "main(['sessions'])\n"
    )
    sent = asm.python_on_terminal(program)
    assert_safe(sent, live=True)
    assert rb"\x1b]0;title" in sent


def test_a_running_command_is_shown_and_not_obeyed(asm: CommandLine) -> None:
    (asm.folder / "evil").write_text(EVIL)
    sent = asm.on_terminal(
        "run", "cat evil; cat evil >&2; printf 'caf\\303\\251\\t1\\r\\n'", "--store", asm.store
    )
    assert_safe(sent, live=True)
    assert sent.count(rb"\x1b]0;title\x07") == 2
    assert "café\t1\r\n".encode() in sent


def test_a_pipe_gets_what_a_command_says_as_it_stands(asm: CommandLine) -> None:
    (asm.folder / "evil").write_text(EVIL)
    done = asm.shell(f"$ASM run 'cat evil; cat evil >&2' --quiet --store {asm.store} >out 2>err")
    assert done.returncode == 0
    for stream in ("out", "err"):
        assert (asm.folder / stream).read_bytes().decode() == EVIL


def test_a_run_in_json_is_safe_on_a_terminal(asm: CommandLine) -> None:
    (asm.folder / "evil").write_text(EVIL)
    sent = asm.on_terminal("run", "cat evil", "--json", "--quiet", "--store", asm.store)
    assert_safe(sent)


def test_what_a_model_says_and_how_it_fails_is_shown_and_not_obeyed(asm: CommandLine) -> None:
    script = {"script": [{"tokens": EVIL}, {"fail": {"code": "provider_error", "message": EVIL}}]}
    sent = asm.on_terminal(
        "run", "--adapter", "scripted", "--input-json", json.dumps(script), "--store", asm.store
    )
    assert_safe(sent, live=True)
    assert sent.count(rb"\x1b]0;title\x07") == 2


def test_the_demo_shows_what_its_commands_print_and_obeys_none_of_it(asm: CommandLine) -> None:
    program = (
        "from asm_runtime.cli.demo.view import View\n"
        "from asm_runtime.records import Event\n"
        f"data = {{'content': {EVIL!r}}}\n"
        "event = Event.new(type='message_streamed', session_id='s', data=data, sequence_number=1)\n"
        "View({'s': ['r']}).event(event)\n"
    )
    assert_safe(asm.python_on_terminal(program, TERM="dumb"))


def test_a_terminal_gets_columns_and_no_line_is_longer_than_its_own(asm: CommandLine) -> None:
    commands = [("sessions", "--store", asm.store), ("runs", EVIL, "--store", asm.store)]
    for sent, title in zip(
        asm.each_on_terminal(commands, TERM="dumb", COLUMNS="90"), ("SESSION", "RUN"), strict=True
    ):
        header, *rows = sent.decode().splitlines()
        assert header.startswith(title)
        assert max(map(len, rows)) == 90
        assert any(row.endswith("…") for row in rows)
    header, row, *_ = asm.on_terminal(*commands[1], TERM="dumb").decode().splitlines()
    assert header.index("STATUS") == row.index("pending") == len(as_one_line(EVIL)) + 2


def test_messages_are_shown_to_people_whole_and_as_lines(asm: CommandLine) -> None:
    asm("run", f"echo {'word ' * 60}; printf 'a\\tb\\n\\nc\\n'", "--store", "sqlite:///long.db")
    session_id = asm("sessions", "--store", "long.db").stdout.split("\t")[0]
    sent = asm.on_terminal("events", session_id, "--store", "long.db", TERM="dumb", COLUMNS="80").decode()
    said = sent[sent.index("word") : sent.index("tool_call_completed")].split("\r\n")
    assert said[0].split() == ["word"] * 60
    assert [line.strip() for line in said[1:4]] == ["a       b", "", "c"]
    others = [line for line in sent.split("\r\n") if "tool_call" in line]
    assert [len(line) for line in others] == [80, 80]


def test_what_went_wrong_is_shown_to_people_as_text(asm: CommandLine) -> None:
    asm("run", "exit 3", "--store", "wrong.db")
    session_id = asm("sessions", "--store", "wrong.db").stdout.split("\t")[0]
    sent = asm.on_terminal("events", session_id, "--store", "wrong.db", TERM="dumb", COLUMNS="60").decode()
    lines = [line for line in sent.split("\r\n") if "failed" in line]
    assert [line.split(maxsplit=2)[2].split()[0] for line in lines] == ["tool_call_failed", "run_failed"]
    assert all(line.endswith("  provider_error: the command exited with code 3") for line in lines)


def test_colours_in_a_pipe_cannot_be_forced(asm: CommandLine) -> None:
    done = asm("sessions", "--store", asm.store, FORCE_COLOR="1", TTY_COMPATIBLE="1")
    assert "\x1b" not in done.stdout


def test_a_terminal_is_one_whatever_the_environment_says(asm: CommandLine) -> None:
    (asm.folder / "evil").write_text(EVIL)
    sent = asm.on_terminal("run", "cat evil", "--store", asm.store, TTY_COMPATIBLE="0")
    assert_safe(sent, live=True)


def test_the_example_of_evil_has_something_of_each_kind() -> None:
    assert len(set(as_json(EVIL)) & set(EVIL)) < len(set(EVIL)) - 12
