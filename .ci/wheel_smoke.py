"""Build the distributions, install the wheel in a venv of its own, and use it from outside the checkout.

First with nothing but what a bare install brings, then with the `cli` extra.
"""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

WHERE = "import asm_runtime, pathlib; print(pathlib.Path(asm_runtime.__file__).resolve())"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="asm-wheel-") as folder:
        outside = Path(folder)
        run(sys.executable, "-m", "build", "--outdir", folder, str(ROOT), cwd=outside)
        wheel = next(outside.glob("*.whl"))
        venv.create(outside / "venv", with_pip=True)
        python, command = str(outside / "venv/bin/python"), str(outside / "venv/bin/asm-runtime")
        pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")

        run(*pip, str(wheel), cwd=outside)
        imported = Path(run(python, "-I", "-c", WHERE, cwd=outside).strip())
        expect(imported.is_relative_to(outside.resolve()), f"imported {imported}, not the wheel")
        first = run(python, "-I", "-W", "error", "-c", first_program(), cwd=outside)
        expect("hello" in first, f"the first program of the README printed {first!r}")
        told = subprocess.run([command], cwd=outside, capture_output=True, text=True)
        expect(
            told.returncode == 2 and "asm-runtime[cli]" in told.stderr, f"without the extra: {told.stderr!r}"
        )

        run(*pip, f"{wheel}[cli]", cwd=outside)
        shown = run(command, "run", "--quiet", "--store", "smoke.db", "echo", "hello", cwd=outside)
        expect("hello" in shown, f"asm-runtime run printed {shown!r}")
        print(f"{wheel.name} works outside the checkout")


def first_program() -> str:
    """The first Python block of the README."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    expect(block is not None, "the README has no Python block")
    return block[1]


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    expect(done.returncode == 0, f"{' '.join(command[:4])} … ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def expect(true: bool, otherwise: str) -> None:
    if not true:
        sys.exit(otherwise)


if __name__ == "__main__":
    main()
