"""How a server serves its session: options that are checked once, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import msgspec

from asm_runtime import options
from asm_runtime.clock import SYSTEM_CLOCK, Clock
from asm_runtime.runtime.run_options import stored_options

__all__ = ["ServerOptions", "ServerSettings"]


class ServerOptions(TypedDict, total=False):
    """The keyword arguments of a server beside its store, adapter and session."""

    max_concurrent_runs: int
    """How many runs of the session may be `running`, in all processes; ≥ 1 (1)."""
    max_queued_runs: int
    """How many more may wait; 0: accept only what can start (100)."""
    default_run_options: Mapping[str, Any] | None
    """Defaults for the options of every run that is submitted here."""
    on_orphan: Literal["fail", "requeue"]
    """What happens to runs whose executor died, or could not write their end: `fail` them (the default),
    or `requeue` them."""
    max_attempts: int
    """After this many lost attempts a run is not queued again but fails; ≥ 1 (5)."""
    requeue_backoff_ms: int
    """The pause before the third attempt of a run, in milliseconds; doubled before each further one, 60 s at
    the most (1 000). The run keeps its slot and its place."""
    cancel_grace_ms: int
    """How long an adapter may take to stop, in milliseconds; then it is left behind (5 000)."""
    stop_drain_ms: int
    """How long `stop()` lets runs go on before it cancels them, in milliseconds (0)."""
    clock: Clock
    """The source of time."""


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The options as they hold; each is what is allowed."""

    max_concurrent_runs: int = 1
    max_queued_runs: int = 100
    default_run_options: Mapping[str, Any] | None = None
    on_orphan: str = "fail"
    max_attempts: int = 5
    requeue_backoff_ms: int = 1_000
    cancel_grace_ms: int = 5_000
    stop_drain_ms: int = 0
    clock: Clock = SYSTEM_CLOCK

    @classmethod
    def of(cls, call: str, given: ServerOptions) -> ServerSettings:
        """Check what was given.

        Args:
            call: The name of the call, for the error.
            given: The caller's keyword arguments.

        Raises:
            TypeError: An option is unknown.
            ValidationError: A value is not what is allowed.
        """
        for name in given:
            if name not in ServerOptions.__annotations__:
                raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")
        settings = cls(**given)
        for name, minimum in _LEAST.items():
            options.integer(name, getattr(settings, name), minimum=minimum)
        options.choice("on_orphan", settings.on_orphan, ("fail", "requeue"))
        stored_options("default_run_options", settings.default_run_options or {})
        return settings

    @property
    def most_open_runs(self) -> int:
        """How many runs of the session may be open."""
        return self.max_concurrent_runs + self.max_queued_runs

    @property
    def cancel_grace_s(self) -> float:
        """`cancel_grace_ms`, in seconds."""
        return self.cancel_grace_ms / 1000

    @property
    def requeues(self) -> bool:
        """Whether runs that have lost their executor are queued again."""
        return self.on_orphan == "requeue"


_LEAST = {
    "max_concurrent_runs": 1,
    "max_queued_runs": 0,
    "max_attempts": 1,
    "requeue_backoff_ms": 0,
    "cancel_grace_ms": 0,
    "stop_drain_ms": 0,
}
