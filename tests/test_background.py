"""The suite passes when it is started in the background, too."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_programs_that_a_test_starts_ignore_no_signal_of_the_terminal() -> None:
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        assert not ignored >> number - 1 & 1


def test_nor_do_they_when_the_suite_is_started_in_the_background() -> None:
    this = f"{__file__}::{test_programs_that_a_test_starts_ignore_no_signal_of_the_terminal.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", this]
    done = subprocess.run(
        ["sh", "-c", "trap '' INT QUIT HUP; exec \"$@\"", "sh", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
