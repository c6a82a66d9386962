"""Spawn a session actor for each piece of work, and let each work through its own queue.

    python examples/spawn_sessions.py

A supervisor serves the sessions. Each has a durable queue and two slots; a crash of one would not
touch the others. Run it again: it finds the sessions of the last time in the same file.
"""

import asyncio

from asm_runtime import SessionManager, SessionServer, SessionSupervisor
from asm_runtime.adapters import ShellAdapter
from asm_runtime.stores import SQLSessionStore

WORK = {
    "reader": ["ls", "wc -l *.py | tail -n 1"],
    "clock": ["date +%Y", "sleep 0.1; date +%Z"],
    "greeter": ["echo hello", "echo hello again"],
}


async def main() -> None:
    adapter = ShellAdapter(cwd=".")
    async with (
        SQLSessionStore("sqlite:///spawned.db") as store,
        SessionSupervisor(store=store, adapter=adapter, max_concurrent_runs=2) as supervisor,
    ):
        submitted: list[tuple[SessionServer, str]] = []
        for agent_id, commands in WORK.items():
            server = await supervisor.start_session(session_opts={"agent_id": agent_id})
            for command in commands:
                submitted.append((server, await server.submit_run({"command": command})))

        for server, run_id in submitted:
            result = await server.await_run(run_id)
            session = await server.manager.get_session(server.session_id)
            print(f"{session.agent_id:<8} {result.status}  {result.output['content'].strip()}")

        for session_id in supervisor.list_sessions():
            await SessionManager(store, adapter).complete_session(session_id)
        print(f"{len(await store.list_sessions())} sessions in spawned.db")


if __name__ == "__main__":
    asyncio.run(main())
