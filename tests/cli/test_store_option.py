"""Which store a command works on, who else can read it, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from asm_runtime.stores import SQLSessionStore
from tests.cli.conftest import CommandLine

SECRET = "hunter2"

WITH_A_SECRET = [
    f"postgresql://bob:{SECRET}@127.0.0.1:1/db",
    f"postgresql://bob:{SECRET}@[bad",
    f"postgresql://bob:{SECRET}@host:port/db",
    f"nosuch://bob:{SECRET}@host/db",
    f"sqlite+aiosqlite://bob:{SECRET}@host/x.db",
    f"sqlite://bob:{SECRET}@host/x.db",
    f"sqlite:///x.db?key={SECRET}",
    f"sqlite:///nope/dir/x.db?password={SECRET}&more=1",
    f"bob:{SECRET}@host",
    f"bob:{SECRET}@host/x.db?key={SECRET}",
]


def open_to_others(folder: Path) -> list[Path]:
    return [
        path
        for path in (folder, *folder.rglob("*"))
        if path.lstat().st_mode & 0o077 and not path.is_symlink()
    ]


def test_the_users_own_store_is_the_users_alone(asm: CommandLine) -> None:
    done = asm.shell("umask 022; $ASM run 'ls -ld $XDG_STATE_HOME/asm-runtime/asm.db*; umask'")
    assert done.returncode == 0, done.stderr
    assert open_to_others(asm.folder / "state" / "asm-runtime") == []
    *files, umask = done.stdout.splitlines()
    modes = {file.rpartition("/")[2]: file[4:10] for file in files}
    for name in ("asm.db", "asm.db-wal", "asm.db-shm"):  # as they are while a command runs
        assert modes[name] == "------"
    assert umask == "0022"  # the command's own files are made as ever


def test_a_store_that_was_open_to_others_is_closed(asm: CommandLine) -> None:
    folder = asm.folder / "state" / "asm-runtime"
    asm("run", "true")
    folder.chmod(0o755)
    (folder / "asm.db").chmod(0o644)
    asm("run", "true")
    assert open_to_others(folder) == []


def test_a_folder_that_is_not_ours_to_close_is_used_as_it_is(asm: CommandLine) -> None:
    real = asm.folder / "elsewhere"
    real.mkdir()
    (asm.folder / "state").mkdir()
    (asm.folder / "state" / "asm-runtime").symlink_to(real)
    assert asm("run", "true").returncode == 0
    assert (real / "asm.db").stat().st_mode & 0o077 == 0


def test_a_named_store_is_made_as_the_users_umask_says(asm: CommandLine) -> None:
    asm.shell("umask 027; $ASM run true --store named.db")
    assert (asm.folder / "named.db").stat().st_mode & 0o777 == 0o640


def test_a_file_where_the_folder_should_be_is_exit_code_3(asm: CommandLine) -> None:
    (asm.folder / "state").write_text("")
    done = asm("run", "true")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


def test_no_password_is_shown(asm: CommandLine) -> None:
    commands: list[tuple[str, ...]] = [("sessions", "--store", url) for url in WITH_A_SECRET]
    commands += [("run", "true", "--store", url) for url in WITH_A_SECRET[:-2]]
    commands += [("migrate", url) for url in WITH_A_SECRET[:-2]]
    commands += [("migrate", url, "--down", "--to", "base") for url in WITH_A_SECRET]
    for command, shown in zip(commands, asm.each_on_terminal(commands), strict=True):
        assert SECRET not in shown.decode(), command
        assert len(shown.splitlines()) == 1, (command, shown)


@pytest.mark.parametrize("url", WITH_A_SECRET[1:])
def test_the_librarys_own_errors_show_none(url: str) -> None:
    with pytest.raises(Exception, match="url_or_engine") as refused:
        SQLSessionStore(url)
    assert SECRET not in f"{refused.value!r} {vars(refused.value)}"
