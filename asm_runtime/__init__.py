"""An embeddable, actor-style asyncio runtime for AI-agent sessions."""

from asm_runtime import errors
from asm_runtime.errors import AsmError
from asm_runtime.manager import SessionManager
from asm_runtime.records import Artifact, Event, EventType, Run, RunStatus, Session, SessionStatus
from asm_runtime.server import SessionServer
from asm_runtime.supervisor import SessionSupervisor
from asm_runtime.telemetry import install

__all__ = [
    "Artifact",
    "AsmError",
    "Event",
    "EventType",
    "Run",
    "RunStatus",
    "Session",
    "SessionManager",
    "SessionServer",
    "SessionStatus",
    "SessionSupervisor",
    "errors",
]

install()
