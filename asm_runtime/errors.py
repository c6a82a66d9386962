"""Every error the library raises, and what its caller does next.

::

    AsmError
    ├── ValidationError               fix the call
    ├── NotFound                      the thing is not there
    │   ├── SessionNotFound
    │   ├── RunNotFound
    │   └── ArtifactNotFound
    ├── Conflict                      somebody else was first: read again
    ├── InvalidTransition             the status does not allow it: read again
    ├── QueueFull                     wait and retry
    ├── Draining                      wait and retry, elsewhere
    ├── MailboxFull                   wait and retry (only the `*_nowait` calls raise it)
    ├── StoreError                    look at the database
    │   ├── StoreUnavailable          wait and retry
    │   └── MigrationRequired         run the command that the message names
    ├── ProviderError                 the provider failed
    │   ├── ProviderTimeout           wait and retry
    │   ├── ProviderUnavailable       wait and retry
    │   ├── ProviderRateLimited       wait and retry
    │   └── ProviderAuthenticationFailed
    ├── RunCancelled                  how a run ended
    ├── RunTimeout
    ├── RunFailed                     … with a code of its own
    ├── AwaitTimeout                  the work goes on
    ├── DrainTimeout                  the work goes on
    ├── PolicyViolation
    ├── CapabilityMissing
    ├── ActorStopped                  start it, or talk to its successor
    ├── LeaseLost                     stop: another node owns the run now
    └── DependencyMissing             install what the message names

`asyncio.CancelledError` is never wrapped, swallowed or translated.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

__all__ = [
    "ActorStopped",
    "ArtifactNotFound",
    "AsmError",
    "AwaitTimeout",
    "CapabilityMissing",
    "Conflict",
    "DependencyMissing",
    "DrainTimeout",
    "Draining",
    "InvalidTransition",
    "LeaseLost",
    "MailboxFull",
    "MigrationRequired",
    "NotFound",
    "PolicyViolation",
    "ProviderAuthenticationFailed",
    "ProviderError",
    "ProviderRateLimited",
    "ProviderTimeout",
    "ProviderUnavailable",
    "QueueFull",
    "RunCancelled",
    "RunFailed",
    "RunNotFound",
    "RunTimeout",
    "SessionNotFound",
    "StoreError",
    "StoreUnavailable",
    "ValidationError",
]


class AsmError(Exception):
    """Base of every error of this library.

    Attributes:
        code: A stable, machine-readable name of the failure.
        details: Facts about it, by name.
        retryable: Whether the same call may succeed later without a change.
        session_id: The session it happened in, where the raiser knows it.
        run_id: The run it happened in, where the raiser knows it.
    """

    code: str = "error"
    retryable: bool = False
    session_id: str | None = None
    run_id: str | None = None
    _by_code: ClassVar[dict[str, type[AsmError]]] = {}

    def __init__(self, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details) if details else {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "code" in cls.__dict__:
            AsmError._by_code.setdefault(cls.code, cls)

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.__dict__ | {"args": self.args}))

    def to_dict(self) -> dict[str, Any]:
        """What is stored as `run.error`: code, message, details, retryable."""
        return {
            "code": self.code,
            "message": self.message,
            "details": dict(self.details),
            "retryable": self.retryable,
        }

    @staticmethod
    def from_dict(error: dict[str, Any]) -> AsmError:
        """The exception that `to_dict` described: of the code's class, `RunFailed` for an unknown code."""
        code = str(error.get("code", RunFailed.code))
        message = str(error.get("message", "")) or code
        made = AsmError._by_code.get(code, RunFailed)._made_of(message, error.get("details"))
        made.code = code
        made.retryable = bool(error.get("retryable", made.retryable))
        return made

    @classmethod
    def _made_of(cls, message: str, details: Any) -> Self:
        """Without the constructor, whose arguments differ between the classes."""
        made = cls.__new__(cls, message)
        AsmError.__init__(made, message, details=details if isinstance(details, dict) else None)  # pyright: ignore
        return made


def _rebuild(cls: type[AsmError], state: dict[str, Any]) -> AsmError:
    error = cls.__new__(cls, *state.pop("args"))
    error.__dict__.update(state)
    return error


class ValidationError(AsmError):
    """An argument, option or payload is not what is allowed."""

    code = "validation_error"


class NotFound(AsmError):
    """Base of the errors for something that does not exist."""

    code = "not_found"


class SessionNotFound(NotFound):
    """No session has that id, or it is soft-deleted."""

    code = "session_not_found"


class RunNotFound(NotFound):
    """No run has that id, or it belongs to another session than the one named."""

    code = "run_not_found"


class ArtifactNotFound(NotFound):
    """No artifact has that key."""

    code = "artifact_not_found"


class Conflict(AsmError):
    """What is stored is not what the caller expected; nothing was written."""

    code = "conflict"


class InvalidTransition(AsmError):
    """The status machine does not allow that step; nothing was written."""

    code = "invalid_transition"

    def __init__(
        self,
        message: str,
        *,
        from_status: str | None = None,
        to_status: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        facts = {"from_status": _plain(from_status), "to_status": _plain(to_status)}
        super().__init__(message, details=facts | (details or {}))

    @property
    def from_status(self) -> str | None:
        """The status that is stored."""
        return self.details.get("from_status")

    @property
    def to_status(self) -> str | None:
        """The requested status; None where the call does not request one."""
        return self.details.get("to_status")


class QueueFull(AsmError):
    """The session has the maximum number of open runs; nothing was stored."""

    code = "max_runs_exceeded"
    retryable = True


class Draining(AsmError):
    """The server accepts no new runs any more."""

    code = "draining"
    retryable = True


class MailboxFull(AsmError):
    """The mailbox is full; the message was not put in."""

    code = "mailbox_full"
    retryable = True


class StoreError(AsmError):
    """The database refused or failed; the cause is chained."""

    code = "storage_error"


class StoreUnavailable(StoreError):
    """The database is busy, full, locked or unreachable at the moment."""

    code = "storage_connection_failed"
    retryable = True


class MigrationRequired(StoreError):
    """The schema is missing, older or newer than this release; the message says what mends it."""

    code = "migration_required"


class ProviderError(AsmError):
    """The adapter or its provider failed."""

    code = "provider_error"


class ProviderTimeout(ProviderError):
    """The provider did not answer in time."""

    code = "provider_timeout"
    retryable = True


class ProviderUnavailable(ProviderError):
    """The provider cannot be reached."""

    code = "provider_unavailable"
    retryable = True


class ProviderRateLimited(ProviderError):
    """The provider limits the rate of requests: wait."""

    code = "provider_rate_limited"
    retryable = True


class ProviderAuthenticationFailed(ProviderError):
    """The provider does not accept the credentials."""

    code = "provider_authentication_failed"


class RunCancelled(AsmError):
    """The run was cancelled; `details["reason"]` says why."""

    code = "run_cancelled"


class RunTimeout(AsmError):
    """The run took longer than `run_timeout_ms`, or reported nothing for `idle_timeout_ms`."""

    code = "run_timeout"


class RunFailed(AsmError):
    """The run failed with a code of its own, for instance `orphaned`."""

    code = "run_failed"

    def __init__(
        self, message: str, *, code: str | None = None, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, details=details)
        if code is not None:
            self.code = code


class AwaitTimeout(AsmError):
    """The time to wait is over; the run goes on."""

    code = "await_timeout"


class DrainTimeout(AsmError):
    """The time to drain is over; the runs go on and new ones are still refused."""

    code = "drain_timeout"


class PolicyViolation(AsmError):
    """A rule of the application forbids it."""

    code = "policy_violation"


class CapabilityMissing(AsmError):
    """The adapter lacks a capability that the call requires."""

    code = "missing_required_capability"


class ActorStopped(AsmError):
    """The actor is not started, has stopped, or crashed before it answered."""

    code = "actor_stopped"


class LeaseLost(AsmError):
    """The run is not running under this attempt any more; nothing was written."""

    code = "lease_lost"


class DependencyMissing(AsmError):
    """An optional package is not installed; the message names the extra."""

    code = "dependency_not_available"


def _plain(status: str | None) -> str | None:
    return None if status is None else str.__str__(status)
