"""What the pages say: their programs run, the tests they name exist, their links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
import tomllib
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


def test_the_program_that_is_killed_goes_on_when_it_is_run_again(tmp_path: Path) -> None:
    program = python_blocks("README.md")[1]
    assert len([line for line in program.splitlines() if line.strip()]) <= 20
    until_told = program.replace("building; sleep 2", "building; until test -e go; do sleep 0.02; done")
    assert until_told != program
    program = until_told.replace("; sleep 2", "")

    with subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        before = [next(process.stdout)]
        while "building" not in before[-1]:
            before.append(next(process.stdout))
        process.kill()
    (tmp_path / "go").touch()

    shown = run_program(program, tmp_path).splitlines(keepends=True)
    assert shown[: len(before)] == before
    fields = [line.split() for line in shown]
    assert [int(number) for number, *_ in fields] == list(range(1, len(shown) + 1))
    started = [run for _, run, kind, *_ in fields if kind == "run_started"]
    assert started == ["fetch", "build", "build", "test"]
    assert [run for _, run, kind, *_ in fields if kind == "run_completed"] == ["fetch", "build", "test"]
    assert run_program(program, tmp_path).splitlines(keepends=True) == shown


def test_the_program_of_the_first_page_can_be_run_again(tmp_path: Path) -> None:
    (program,) = python_blocks("docs/index.md")
    assert [run_program(program, tmp_path) for _ in range(2)] == ["hello\n\n"] * 2


SUBMITS = """
import asyncio
import httpx
from asm_runtime import SessionManager

async def submits():
    async with SQLSessionStore("sqlite:///service.db") as store:
        await SessionManager(store, ShellAdapter()).start_session(agent_id="web", id="s")

        async with app.router.lifespan_context(app) as state:
            async def served(scope, receive, send):
                await app(scope | {"state": dict(state)}, receive, send)

            transport = httpx.ASGITransport(served)
            async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
                answer = await client.post("/sessions/s/runs", params={"prompt": "echo hello"})
        assert answer.status_code == 202, answer.text
        print((await store.get_run(answer.json()["run_id"])).input)

asyncio.run(submits())
"""


def test_the_application_of_the_page_on_fastapi_submits_runs(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    application = next(block for block in python_blocks("docs/fastapi.md") if "lifespan" in block)
    assert run_program(application + SUBMITS, tmp_path) == "{'prompt': 'echo hello'}\n"


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
        own = re.fullmatch(r"https://.+/(?:blob|raw)/main/(.+)", target)
        if own is not None:
            assert (ROOT / own[1]).exists(), target
        elif not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_the_projects_address_makes_every_link_of_the_readme_absolute(tmp_path: Path) -> None:
    for name in ("README.md", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    tell = runpy.run_path(str(ROOT / ".ci" / "project_url.py"))["main"]
    for address in ("https://github.com/old/place", "https://github.com/me/asm-runtime/"):
        tell(address, tmp_path)
    readme = (tmp_path / "README.md").read_text()
    targets = re.findall(r"\]\(([^)]+)\)", readme)
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert "![The demo" in readme
    assert "](https://github.com/me/asm-runtime/raw/main/docs/assets/demo.svg)" in readme
    assert "](https://github.com/me/asm-runtime/blob/main/docs/stores.md)" in readme
    assert "old/place" not in readme
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    assert project["project"]["urls"]["Source"] == "https://github.com/me/asm-runtime"
    before = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for facts in (project, before):
        facts["project"].pop("urls", None)
    assert project == before


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


@pytest.mark.parametrize(
    ("page", "suite", "tests"),
    [
        ("docs/stores.md", "SessionStoreConformance", 100),
        ("docs/artifacts.md", "ArtifactStoreConformance", 70),
    ],
)
def test_the_store_of_a_page_passes_the_suite_as_it_stands(
    page: str, suite: str, tests: int, tmp_path: Path
) -> None:
    (block,) = (block for block in python_blocks(page) if suite in block)
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
    assert int(passed) > tests
