"""What an error of `obstore` becomes, by one table, and without what must stay secret."""

from __future__ import annotations

import re

from asm_runtime.errors import StoreError, StoreUnavailable

__all__ = ["MEANINGS", "translated"]

Meaning = tuple[type[StoreError], str]

MEANINGS: dict[str, Meaning] = {
    "GenericError": (StoreUnavailable, "the service is out of reach, or failed"),
    "JoinError": (StoreUnavailable, "a task of the client was lost"),
    "TimeoutError": (StoreUnavailable, "the service did not answer in time"),
    "ConnectionError": (StoreUnavailable, "the connection was lost"),
    "FileNotFoundError": (StoreError, "there is no such bucket or container"),
    "NotFoundError": (StoreError, "there is no such bucket or container"),
    "PermissionDeniedError": (StoreError, "the credentials do not allow it"),
    "UnauthenticatedError": (StoreError, "the credentials are not accepted"),
    "AlreadyExistsError": (StoreError, "the object is there already"),
    "PreconditionError": (StoreError, "the object has changed"),
    "NotModifiedError": (StoreError, "the object has not changed"),
    "NotSupportedError": (StoreError, "the service cannot do that"),
    "NotImplementedError": (StoreError, "the service cannot do that"),
    "InvalidPathError": (StoreError, "the service does not take such a name"),
    "UnknownConfigurationKeyError": (StoreError, "an option is unknown"),
    "OSError": (StoreError, "the client failed"),
    "BaseError": (StoreError, "the service refused"),
    "ValueError": (StoreError, "the client refused"),
}
"""By the name of the class, or of the first of its bases that is here."""

_UNKNOWN: Meaning = (StoreError, "the client failed")
_REFUSED = re.compile(r"status code: (40[0-9]|41[0-9]|501)|InvalidAccessKeyId|SignatureDoesNotMatch")
"""An answer that will be the same again: its class does not say so."""

_STATUS = re.compile(r"status code: (\d{3})|<Code>(\w+)</Code>")


def translated(error: Exception, place: str) -> StoreError:
    """Our error for one of the client's.

    The client's is not chained and its text not repeated: it may hold signed URLs and keys. What it says of
    the answer, the HTTP status and the service's code, is in `details`.

    Args:
        error: What the client raised.
        place: What names the store in the message.
    """
    names = [one.__name__ for one in type(error).__mro__]
    kind, meaning = next((MEANINGS[name] for name in names if name in MEANINGS), _UNKNOWN)
    text = str(error)
    if kind is StoreUnavailable and _REFUSED.search(text):
        kind, meaning = StoreError, "the service refused"
    facts = [status or code for status, code in _STATUS.findall(text)]
    shown = f" ({', '.join(dict.fromkeys(facts))})" if facts else ""
    return kind(
        f"artifacts in {place}: {meaning}{shown}",
        details={"store": place, "error": type(error).__name__, "answer": facts},
    )
