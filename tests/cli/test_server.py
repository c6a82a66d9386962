"""The command on a server database."""

from __future__ import annotations

from tests.cli.conftest import CommandLine


def test_only_migrate_changes_the_tables_of_a_server(asm: CommandLine, postgres_url: str) -> None:
    empty = f"{postgres_url}{'&' if '?' in postgres_url else '?'}search_path=nowhere"
    assert "asm-runtime migrate postgresql://" in asm("run", "true", "--store", empty).stderr
    for _ in range(2):
        assert asm("migrate", postgres_url).returncode == 0
    assert asm("run", "true", "--store", postgres_url).returncode == 0
    assert len(asm("sessions", "--store", postgres_url, "--json").stdout.splitlines()) == 1
