"""The rows of artifacts beside sessions in memory."""

from __future__ import annotations

from asm_runtime import options
from asm_runtime.ports import ArtifactStats, SessionStore
from asm_runtime.records import Artifact
from asm_runtime.stores import artifact_rules
from asm_runtime.stores.artifact_rules import RowFilter
from asm_runtime.stores.composite import plain_store
from asm_runtime.stores.memory import InMemorySessionStore

__all__ = ["InMemoryArtifactRegistry"]


class InMemoryArtifactRegistry:
    """Keeps `asm_runtime.ports.ArtifactRegistry` in memory. It needs no start and no stop.

    The rows lie in the session store: all registries of one see the same rows, and `delete_session`
    removes those of its session.

    Args:
        store: An `InMemorySessionStore`, or a `CompositeSessionStore` of one.
    """

    def __init__(self, store: SessionStore) -> None:
        plain = plain_store(store)
        if not isinstance(plain, InMemorySessionStore):
            raise options.refused("store", store, "an InMemorySessionStore")
        self._store = plain
        self._rows = plain.artifacts
        self._call = plain.call

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._store!r}>"

    async def register(self, artifact: Artifact, *, replace: bool | Artifact = False) -> Artifact:
        """See `ArtifactRegistry`."""
        row, replaced = artifact_rules.new_row(artifact), artifact_rules.replaced(replace)
        stored = await self._call(self._rows.register, row, replaced, self._store._clock.now())
        return stored.checked()

    async def get(self, key: str) -> Artifact:
        """See `ArtifactRegistry`."""
        key = options.identifier("key", key)
        return (await self._call(self._rows.get, key)).checked()

    async def list_artifacts(
        self,
        *,
        session_id: str | None = None,
        run_id: str | None = None,
        prefix: str = "",
        include_deleted: bool = False,
        limit: int | None = None,
        after: Artifact | None = None,
    ) -> list[Artifact]:
        """See `ArtifactRegistry`."""
        filter = RowFilter.checked(
            session_id=session_id,
            run_id=run_id,
            prefix=prefix,
            include_deleted=include_deleted,
            limit=limit,
            after=after,
        )
        found = await self._call(self._rows.list, filter)
        return [row.checked() for row in found]

    async def session_stats(self, session_id: str) -> ArtifactStats:
        """See `ArtifactRegistry`."""
        session_id = options.identifier("session_id", session_id)
        return await self._call(self._rows.stats, session_id)

    async def delete(self, key: str | Artifact) -> None:
        """See `ArtifactRegistry`."""
        text, id = artifact_rules.one_row(key)
        await self._call(self._rows.delete, text, id, self._store._clock.now())
