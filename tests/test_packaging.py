"""What is installed: the same modules and files as in the checkout, no more dependencies than promised."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MADE_BY_TOOLS = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "build", "dist", "*.db*"
)


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def package_folders(pyproject: dict[str, Any]) -> dict[str, Path]:
    """Where each top package lies: `asm_runtime.stores` in `stores`."""
    return {name: ROOT / folder for name, folder in pyproject["tool"]["setuptools"]["package-dir"].items()}


@pytest.fixture(scope="module")
def shipped_files(package_folders: dict[str, Path]) -> set[str]:
    """The path in the wheel of every module and data file of the checkout."""
    shipped: set[str] = set()
    for name, folder in package_folders.items():
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                shipped.add((Path(*name.split(".")) / path.relative_to(folder)).as_posix())
    return shipped


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and the wheel built from it, of a copy of the checkout."""
    copy = tmp_path_factory.mktemp("checkout") / "asm-runtime"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=MADE_BY_TOOLS)
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return target


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> zipfile.ZipFile:
    (path,) = distributions.glob("*.whl")
    return zipfile.ZipFile(path)


def imported_by(statement: str) -> set[str]:
    """The top-level modules and packages that a fresh interpreter holds after a statement."""
    script = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_packages_on_disk_are_the_packages_declared(
    pyproject: dict[str, Any], package_folders: dict[str, Path]
) -> None:
    on_disk: set[str] = set()
    for name, folder in package_folders.items():
        for module in folder.rglob("*.py"):
            on_disk.add(".".join((name, *module.relative_to(folder).parent.parts)))
    assert on_disk == set(pyproject["tool"]["setuptools"]["packages"])


def test_every_package_has_an_init_module(
    pyproject: dict[str, Any], package_folders: dict[str, Path]
) -> None:
    for package in pyproject["tool"]["setuptools"]["packages"]:
        root = max((name for name in package_folders if f"{package}.".startswith(f"{name}.")), key=len)
        below = str(package).removeprefix(root).replace(".", "/").lstrip("/")
        assert (package_folders[root] / below / "__init__.py").is_file(), package


def test_the_links_inside_the_package_lead_to_the_top_level_folders(package_folders: dict[str, Path]) -> None:
    for name, folder in package_folders.items():
        if name.startswith("asm_runtime."):
            link = ROOT.joinpath(*name.split("."))
            assert os.readlink(link) == f"../{folder.name}"
            assert link.resolve() == folder.resolve()


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(
    wheel: zipfile.ZipFile, shipped_files: set[str]
) -> None:
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert in_wheel == shipped_files
    assert "asm_runtime/py.typed" in in_wheel


def test_the_sdist_carries_tests_benchmarks_docs_and_examples(distributions: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml", ".ci/run"}
    for folder in ("tests", "benchmarks", "docs", "examples"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".md"):
                wanted.add(path.relative_to(ROOT).as_posix())
    assert wanted <= names
    assert not [name for name in names if name.startswith("asm_runtime/stores")]


def test_a_bare_install_depends_on_five_packages(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    headers = wheel.read(metadata).decode().partition("\n\n")[0].splitlines()
    required = [line.removeprefix("Requires-Dist: ") for line in headers if line.startswith("Requires-Dist")]
    bare = {re.split(r"[<>=!~\[; ]", line)[0].lower() for line in required if "extra ==" not in line}
    assert bare == {"msgspec", "aiosqlite", "sqlalchemy", "alembic", "opentelemetry-api"}


@pytest.mark.parametrize(
    "statement",
    [
        "import asm_runtime",
        "from asm_runtime.stores import InMemorySessionStore",
        "from asm_runtime.adapters import ScriptedAdapter, ShellAdapter",
    ],
)
def test_what_needs_no_database_loads_no_database_library_and_no_extra(statement: str) -> None:
    heavy = {"sqlalchemy", "alembic", "aiosqlite", "rich", "cyclopts", "uvloop", "opentelemetry.sdk"}
    assert not heavy & imported_by(statement)


def test_the_store_for_sqlite_does_not_load_the_extras() -> None:
    extras = {"rich", "cyclopts", "uvloop", "opentelemetry.sdk", "greenlet"}
    assert not extras & imported_by("from asm_runtime.stores import SQLSessionStore")


def test_the_changelog_and_the_licence_are_those_of_this_version(pyproject: dict[str, Any]) -> None:
    assert f" {pyproject['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "LICENSE").read_text().startswith(f"{pyproject['project']['license']} License")
