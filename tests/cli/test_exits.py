"""How the command ends: by a signal, without a reader, on a full disk, with streams that are closed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asm_runtime.cli import launcher
from asm_runtime.records import Event, Session
from asm_runtime.stores import SQLSessionStore
from tests.cli.conftest import CommandLine

WAITS = """\
import asyncio, time, sys
from asm_runtime import cli

async def list_sessions(*_, **__):
    print("ready", flush=True)
    await asyncio.sleep(60)

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "asm_runtime.cli.commands":
            print("ready", flush=True)
            time.sleep(60)

if sys.argv[1] == "importing":
    sys.meta_path.insert(0, Slow())
else:
    from asm_runtime.cli import operations
    operations.list_sessions = list_sessions
cli.main(["sessions"])
"""


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("importing", signal.SIGINT),
        ("working", signal.SIGINT),
        ("working", signal.SIGTERM),
        ("working", signal.SIGHUP),
    ],
)
def test_a_signal_ends_any_command_with_an_exit_code_and_no_traceback(
    asm: CommandLine, place: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        (sys.executable, "-c", WAITS, place),
        cwd=asm.folder,
        env=asm.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.communicate() == ("", "")
        assert process.returncode == 130


STARTS = """\
import sys, time
from importlib.util import module_from_spec, spec_from_file_location

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == slow:
            print("ready", flush=True)
            time.sleep(60)

_, file, slow, *arguments = sys.argv
sys.meta_path.insert(0, Slow())
spec = spec_from_file_location("asm_runtime_command", file)
launcher = module_from_spec(spec)
spec.loader.exec_module(launcher)
sys.argv = ["asm-runtime", *arguments]
launcher.main()
"""


@pytest.mark.parametrize(
    "slow", ["asm_runtime", "msgspec", "cyclopts", "asm_runtime.cli.operations", "uvloop"]
)
def test_an_interrupt_while_the_command_starts_ends_it_without_a_word(asm: CommandLine, slow: str) -> None:
    with subprocess.Popen(
        (sys.executable, "-c", STARTS, launcher.__file__, slow, "sessions"),
        cwd=asm.folder,
        env=asm.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
        assert process.returncode == 130


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full, on Linux")
@pytest.mark.parametrize("command", ["sessions", "run 'seq 20000' --quiet", "events s", "--help"])
def test_a_full_disk_is_one_line_and_an_exit_code(asm: CommandLine, command: str) -> None:
    async def filled(store: SQLSessionStore) -> None:
        await store.save_session(Session.new(agent_id="a", id="s"))
        await store.append_event(Event.new(type="custom", session_id="s"))

    asm.in_store(filled)
    done = asm.shell(f"ASM_STORE={asm.store} $ASM {command} >/dev/full")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No space left" in line


def test_streams_that_are_closed_are_as_good_as_dev_null(asm: CommandLine) -> None:
    done = asm.shell(f"$ASM run 'echo hello' --store {asm.store} >&- 2>&- <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    shown = asm("export", asm("sessions", "--store", asm.store).stdout.split("\t")[0], "--store", asm.store)
    assert "hello" in shown.stdout  # the store took no harm


def test_errors_that_nobody_reads_are_no_error(asm: CommandLine) -> None:
    assert asm.shell("$ASM sessions --store nothing.db 2>/dev/full").returncode == 3


def test_a_terminal_without_utf_8_gets_escapes(asm: CommandLine) -> None:
    ascii_only = "PYTHONIOENCODING=ascii PYTHONUTF8=0 $ASM"
    assert asm.shell(f"{ascii_only} run 'echo café' --store {asm.store}").stdout == "caf\\xe9\n"
    assert asm.shell(f"{ascii_only} --help").returncode == 0
