from __future__ import annotations

import subprocess
import sys


def test_the_clock_and_the_scripted_provider_need_no_pytest() -> None:
    program = (
        "import sys; from asm_runtime.testing import JumpingClock, ScriptedAdapter; "
        "sys.exit('pytest' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
