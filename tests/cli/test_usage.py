"""The command itself: help, wrong calls, what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import CommandLine

COMMANDS = (
    *("run", "show", "cancel", "settle"),
    *("sessions", "runs", "events", "tail", "export", "pause", "resume", "complete", "delete"),
    *("migrate", "demo", "completion"),
)


def test_the_help_names_every_command_and_the_exit_codes(asm: CommandLine) -> None:
    done = asm("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"  {command}: " in done.stdout
    assert "124" in done.stdout
    assert "ASM_STORE" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_each_of_its_options(asm: CommandLine, command: str) -> None:
    done = asm(command, "--help")
    assert done.returncode == 0
    options = [line for line in done.stdout.splitlines() if line.startswith("  --")]
    assert options or command == "completion"
    for option in options:
        assert ": " in option, option


def test_in_a_pipe_the_help_has_no_colours_and_no_boxes(asm: CommandLine) -> None:
    shown = asm("run", "--help").stdout
    assert "\x1b" not in shown
    assert not set("─│╭╮╰╯") & set(shown)


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("run", "--bogus"),
        ("run", "ls", "--timeout-ms", "soon"),
        ("run", "ls", "--timeout-ms", "0"),
        ("run", "ls", "--adapter", "none"),
        ("run", "ls", "--file", "x"),
        ("run", "--file", "not-there"),
        ("run", "--input-json", "{"),
        ("events",),
        ("events", "s", "--after", "-1"),
        ("events", "s", "--limit", "0"),
        ("events", "s", "--since", "yesterday"),
        ("sessions", "--last", "0"),
        ("migrate", "a.db", "--store", "b.db"),
        ("completion", "tcsh"),
        ("sessions", "--store", "nonsense://"),
        ("run", "ls", "--store", "a://b://c d"),
    ],
)
def test_a_wrong_call_is_one_line_on_stderr_and_exit_code_2(
    asm: CommandLine, arguments: tuple[str, ...]
) -> None:
    done = asm(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("asm-runtime: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_be_taught_the_commands(asm: CommandLine, shell: str) -> None:
    script = asm("completion", shell).stdout
    assert all(command in script for command in COMMANDS)


def test_the_version_is_that_of_the_package(asm: CommandLine) -> None:
    assert asm("--version").stdout == "0.1.0\n"


def test_without_its_extra_the_command_says_what_to_install(asm: CommandLine) -> None:
    script = (
        "import sys; sys.modules['cyclopts'] = None; from asm_runtime.cli import main; main(['sessions'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "asm-runtime: the command needs cyclopts: pip install 'asm-runtime[cli]'\n"
