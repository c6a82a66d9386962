"""An embeddable, actor-style asyncio runtime for AI-agent sessions."""

from asm_runtime import errors
from asm_runtime.errors import AsmError
from asm_runtime.records import Artifact, Event, EventType, Run, RunStatus, Session, SessionStatus

__all__ = [
    "Artifact",
    "AsmError",
    "Event",
    "EventType",
    "Run",
    "RunStatus",
    "Session",
    "SessionStatus",
    "errors",
]
