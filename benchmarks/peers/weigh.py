"""What does each library bring with it? Wheels, lines, and the time of its import.

    python -m benchmarks.peers.weigh

Installs this checkout and each peer, as its own documentation says, into an environment of its own in a
temporary folder, so it needs a package index. Prints a Markdown table. A wheel is a distribution that is
installed, the library's own included, pip's not. Lines are those of the library's own Python files that
hold code: no blank lines, comments or docstrings. The import is what a first program imports; the median
of fresh interpreters, taken in turns, with compiled files in place.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent.parent
ROUNDS = 9


class Library(msgspec.Struct, frozen=True):
    """A library as a user installs and imports it."""

    name: str
    install: list[str]
    imports: str
    packages: list[str]


LIBRARIES = [
    Library(
        "asm-runtime",
        [str(ROOT)],
        "from asm_runtime import SessionServer\n"
        "from asm_runtime.adapters import ShellAdapter\n"
        "from asm_runtime.stores import SQLSessionStore",
        ["asm_runtime"],
    ),
    Library("dbos", ["dbos"], "from dbos import DBOS, SetWorkflowID", ["dbos"]),
    Library(
        "langgraph",
        ["langgraph", "langgraph-checkpoint-sqlite", "aiosqlite"],
        "from langgraph.graph import StateGraph\n"
        "from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver",
        ["langgraph"],
    ),
    Library(
        "openai-agents", ["openai-agents"], "from agents import Agent, Runner, SQLiteSession", ["agents"]
    ),
]

IMPORT = "import time\nbegan = time.perf_counter()\n{imports}\nprint(time.perf_counter() - began)"

FACTS = """
import ast, importlib.metadata, pathlib, sys, sysconfig
installed = {item.metadata["Name"].lower(): item.version for item in importlib.metadata.distributions()}
lines = 0
for package in sys.argv[2:]:
    for file in (pathlib.Path(sysconfig.get_path("purelib")) / package).rglob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        code = {number for node in ast.walk(tree) if isinstance(node, (ast.stmt, ast.expr))
                for number in (node.lineno, node.end_lineno)}
        for node in ast.walk(tree):
            match node:
                case ast.Expr(value=ast.Constant(value=str())):
                    code -= set(range(node.lineno, node.end_lineno + 1))
        lines += len(code)
print(len(installed.keys() - {"pip", "setuptools"}), lines, installed[sys.argv[1]])
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="asm-weigh-") as folder:
        pythons = {library.name: installed(library, Path(folder)) for library in LIBRARIES}
        times: dict[str, list[float]] = {library.name: [] for library in LIBRARIES}
        for _ in range(ROUNDS + 1):
            for library in LIBRARIES:
                program = IMPORT.format(imports=library.imports)
                times[library.name].append(float(printed(pythons[library.name], "-c", program)))
        print(f"\n{platform.python_implementation()} {platform.python_version()}, {platform.system()}\n")
        print("| library | version | wheels | lines | import |\n|---|---|---|---|---|")
        for library in LIBRARIES:
            facts = printed(pythons[library.name], "-c", FACTS, library.name, *library.packages)
            wheels, lines, version = facts.split()
            seconds = statistics.median(times[library.name][1:])  # the first has compiled its files
            print(f"| {library.name} | {version} | {wheels} | {lines} | {seconds:.2f} s |")


def installed(library: Library, folder: Path) -> str:
    """The interpreter of an environment that has it."""
    place = folder / library.name
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    print(f"installing {library.name}", file=sys.stderr)
    printed(python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *library.install)
    return python


def printed(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd="/").stdout


if __name__ == "__main__":
    main()
