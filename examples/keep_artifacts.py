"""Keep what a run made beside its session: row and blob come, are replaced and go as one.

    python examples/keep_artifacts.py

The blobs lie in a folder. With the extra `objects`, `ObjectArtifactStore("s3://bucket/prefix")` in its
place keeps them in a bucket, and nothing else changes.
"""

import asyncio
from collections.abc import AsyncIterator

from asm_runtime import SessionManager
from asm_runtime.adapters import ShellAdapter
from asm_runtime.stores import ArtifactRegistry, CompositeSessionStore, FileArtifactStore, SQLSessionStore


async def report(lines: int) -> AsyncIterator[bytes]:
    """A large file in pieces: it is never all in memory."""
    for number in range(lines):
        yield b"%08d ok\n" % number


async def main() -> None:
    sessions = SQLSessionStore("sqlite:///artifacts.db")
    async with CompositeSessionStore(
        sessions=sessions,
        artifacts=FileArtifactStore("blobs"),
        registry=ArtifactRegistry(sessions),
    ) as store:
        result = await SessionManager(store, ShellAdapter()).run_once({"command": "echo done"})

        for lines in (10, 100_000):  # the second takes the place of the first
            kept = await store.put(
                "report.txt", report(lines), session_id=result.session_id, run_id=result.run_id
            )
        print(f"{kept.key}: {kept.byte_size} bytes, sha256 {kept.checksum_sha256[:12]}")

        size = 0
        async for piece in store.stream("report.txt"):
            size += len(piece)
        assert size == kept.byte_size
        print("listed", [blob.key async for blob in store.list()])

        await store.delete_session(result.session_id)
        print("with the session gone", [blob.key async for blob in store.list()])


if __name__ == "__main__":
    asyncio.run(main())
