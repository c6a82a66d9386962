"""Who is alive on a server database."""

from __future__ import annotations

from asm_runtime.records import Run
from asm_runtime.stores import SQLSessionStore
from tests.stores.sql.postgres.conftest import Ask


async def test_a_node_is_dead_when_its_lease_has_run_out_and_alive_again_when_it_renews_it(
    postgres_url: str, ask: Ask
) -> None:
    # So short that the server has been up for longer, so long that the owner does not renew it meanwhile.
    async with (
        SQLSessionStore(postgres_url, lease_ttl_ms=3_600_000) as owner,
        SQLSessionStore(postgres_url, lease_ttl_ms=1) as other,
    ):
        await owner.enqueue_run(Run.new(session_id="s", id="r"))
        claimed = await owner.claim_run("s")
        assert await other.list_orphaned_runs() == []
        await ask("UPDATE asm_nodes SET expires_at = '2001-01-01T00:00:00.000000Z'")
        assert await other.list_orphaned_runs() == [claimed]
        assert await owner.list_orphaned_runs() == []
        await ask("UPDATE asm_nodes SET expires_at = '9001-01-01T00:00:00.000000Z'")
        assert await other.list_orphaned_runs() == []


async def test_nobody_is_reaped_for_one_lease_after_the_server_has_started(
    postgres_url: str, ask: Ask
) -> None:
    async with (
        SQLSessionStore(postgres_url, lease_ttl_ms=3_600_000) as owner,
        SQLSessionStore(postgres_url, lease_ttl_ms=1_000_000_000) as other,
    ):
        await owner.enqueue_run(Run.new(session_id="s", id="r"))
        await owner.claim_run("s")
        await ask("UPDATE asm_nodes SET expires_at = '2001-01-01T00:00:00.000000Z'")
        assert await other.list_orphaned_runs() == []


async def test_a_lease_is_of_who_claims_and_ends_with_the_store(postgres_url: str, ask: Ask) -> None:
    async with SQLSessionStore(postgres_url) as store:
        await store.enqueue_run(Run.new(session_id="s", id="r"))
        assert await ask("SELECT 1 FROM asm_nodes") == []
        await store.claim_run("s")
        (row,) = await ask("SELECT id FROM asm_nodes")
        assert row["id"] == store.node_id
    assert await ask("SELECT 1 FROM asm_nodes") == []
