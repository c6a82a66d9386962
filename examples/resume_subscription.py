"""Leave a subscription in the middle, and resume it at its cursor: no event is missed or repeated.

    python examples/resume_subscription.py

The cursor is a number: keep it in a browser, a database, a file. What happens while nobody reads
waits in the session's log.
"""

import asyncio

from asm_runtime import SessionServer
from asm_runtime.adapters import ShellAdapter
from asm_runtime.stores import SQLSessionStore


async def main() -> None:
    async with (
        SQLSessionStore("sqlite:///resumed.db") as store,
        SessionServer(store=store, adapter=ShellAdapter(), session_opts={"agent_id": "counter"}) as server,
    ):
        run_id = await server.submit_run(
            {"command": "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.05; done"}
        )

        seen: list[int | None] = []
        async with server.subscribe() as events:
            async for event in events:
                seen.append(event.sequence_number)
                if event.sequence_number == 5:
                    break
            cursor = events.cursor
        print(f"left at {cursor}")

        await server.await_run(run_id)  # nobody reads meanwhile

        async with server.subscribe(after=cursor) as events:
            async for event in events:
                seen.append(event.sequence_number)
                if event.is_terminal:
                    break
        print(f"saw {seen}")
        assert seen == list(range(1, await store.get_latest_sequence(server.session_id) + 1))
        print("each event once, in order")


if __name__ == "__main__":
    asyncio.run(main())
