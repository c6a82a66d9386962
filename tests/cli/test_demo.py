"""The demo: it checks itself against the log; here, that it does and that it leads on."""

from __future__ import annotations

import pytest

from tests.cli.conftest import CommandLine, CompletedText, Forks


@pytest.fixture(scope="module")
def asm(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> CommandLine:
    return CommandLine(tmp_path_factory.mktemp("demo"), forks)


@pytest.fixture(scope="module")
def played(asm: CommandLine) -> CompletedText:
    """A demo that has been played once."""
    return asm("demo", "--file", "demo.db")


def next_commands(shown: str) -> list[str]:
    after = shown.partition("\nGo on with\n")[2]
    return [line.strip() for line in after.splitlines() if line.strip()]


def test_every_claim_of_the_demo_holds(played: CompletedText) -> None:
    assert played.returncode == 0, played.stdout + played.stderr
    assert played.stderr == ""
    claims = played.stdout.partition("\nChecked against the log\n")[2].partition("\n\n")[0].splitlines()
    assert len(claims) == 8
    assert all(claim.startswith("  ok  ") for claim in claims)


def test_in_a_pipe_the_demo_shows_plain_lines(played: CompletedText) -> None:
    assert "\x1b" not in played.stdout
    assert "kill -9" in played.stdout
    assert "What you just saw" in played.stdout


def test_the_commands_that_the_demo_ends_with_work_as_they_are_pasted(
    asm: CommandLine, played: CompletedText
) -> None:
    commands = next_commands(played.stdout)
    assert len(commands) >= 5
    for command in commands:
        if " tail " not in command:  # goes on until it is interrupted
            done = asm.shell(command)
            assert (done.returncode, done.stderr if " run " not in command else "") == (0, ""), command
            assert done.stdout, command


def test_the_demo_does_not_touch_a_file_that_is_there(asm: CommandLine, played: CompletedText) -> None:
    before = (asm.folder / "demo.db").read_bytes()
    done = asm("demo", "--file", "demo.db")
    assert done.returncode == 2
    assert (asm.folder / "demo.db").read_bytes() == before
