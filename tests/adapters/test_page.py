"""What docs/adapters.md shows and says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from asm_runtime.adapters.shell import INHERITED_ENV

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adapters.md").read_text()


def test_the_adapter_on_the_page_runs(tmp_path: Path) -> None:
    program = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(maxsplit=1)[1].rstrip() for line in lines[:-1]] == [
        "message_sent who is there",
        "run_started",
        "message_streamed who",
        "message_streamed is",
        "message_streamed there",
        "message_received who is there",
        "run_completed",
    ]
    assert lines[-1] == "{'content': 'who is there '} grey {'output_tokens': 3}"


def test_the_page_names_every_variable_that_commands_inherit() -> None:
    for name in INHERITED_ENV:
        assert f"`{name}`" in PAGE
