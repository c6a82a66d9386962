"""What the pages say: their programs run, the tests they name exist, their links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def run_program(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_session_is_at_most_twelve_lines_and_runs(tmp_path: Path) -> None:
    program = python_blocks("README.md")[0]
    assert len([line for line in program.splitlines() if line.strip()]) <= 12
    assert run_program(program, tmp_path) == "hello\n\n"
    assert (tmp_path / "first.db").is_file()


def test_the_program_of_twenty_lines_has_no_more_and_runs(tmp_path: Path) -> None:
    program = python_blocks("README.md")[1]
    assert len([line for line in program.splitlines() if line.strip()]) <= 20
    shown = run_program(program, tmp_path)
    assert re.findall(r"step (\d)$", shown, re.MULTILINE) == ["1", "2", "3"]
    assert re.search(r"^\d+ message_streamed step 1$", shown, re.MULTILINE)
    assert shown.endswith("completed 0\n")


def test_every_test_that_a_page_names_exists() -> None:
    named = {
        name
        for page in PAGES
        for name in re.findall(r"`((?:tests|asm_runtime)/[\w/]+\.py::\w+)`", page.read_text())
    }
    assert len(named) > 10
    for name in named:
        file, _, function = name.partition("::")
        nodes = ast.walk(ast.parse((ROOT / file).read_text()))
        functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in functions, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_a_page_is_python(page: Path) -> None:
    for block in python_blocks(str(page.relative_to(ROOT))):
        compile(block, page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def make_targets_of(page: Path) -> set[str]:
    """What a page has its reader type, in code: not "make sure" in a sentence."""
    text = page.read_text()
    code = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE) + re.findall(
        r"`([^`\n]+)`", text
    )
    return {name for piece in code for name in re.findall(r"^\s*make ([a-z-]+)", piece, re.MULTILINE)}


def test_every_make_target_that_a_page_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert set(re.findall(r"[a-z-]+", makefile.partition(".PHONY:")[2].partition("\n")[0])) == targets
    named = {page.name: make_targets_of(page) for page in PAGES}
    assert {"demo", "test", "check", "bench"} <= named["README.md"]
    for page, names in named.items():
        assert names <= targets, page


def test_a_make_target_that_is_not_there_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("To make sure, run `make certain` or\n```sh\nmake nothing  # at all\n```\n")
    assert make_targets_of(page) == {"certain", "nothing"}


def test_the_store_of_the_page_on_stores_passes_the_suite_as_it_stands(tmp_path: Path) -> None:
    (block,) = (block for block in python_blocks("docs/stores.md") if "SessionStoreConformance" in block)
    (tmp_path / "test_my_store.py").write_text(block)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 100
