"""Names of objects: as legible as the keys, and as different.

Services take names apart at slashes, decode them, and forbid some. So each segment of a key is escaped by
itself, a folder of the key is a folder of the name, and what is not of letters, digits, `.`, `-` and `_`
is written `=XX`, but for characters beyond ASCII, which stay.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

from asm_runtime.stores.artifacts.keys import blob_key

__all__ = ["LONG", "folder_of_prefix", "key_of_object", "object_name"]

MAX_NAME_BYTES = 900
"""How long a name may be, so that a store's own prefix has room before it.
Source: S3, GCS and Azure allow 1024 bytes or characters."""

LONG = "=long"
"""The folder of keys whose names would be longer."""

_ESCAPE = "="
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
_NOT_IN_XML = frozenset("\ufffe\uffff")  # of which lists are made


def object_name(key: str) -> str:
    """The name of a key."""
    name = "/".join(map(_escaped, key.split("/")))
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"{LONG}/{urlsafe_b64encode(key.encode()).decode().rstrip('=')}"
    return name


def key_of_object(name: str) -> str | None:
    """The key of a name; None: no key has it."""
    try:
        key = blob_key("key", _key_of(name))
    except Exception:
        return None
    return key if object_name(key) == name else None


def folder_of_prefix(prefix: str) -> str | None:
    """The folder in which the names of all keys are that begin so, but for long ones; None: no folder."""
    folder, slash, _ = prefix.rpartition("/")
    return "/".join(map(_escaped, folder.split("/"))) if slash else None


def _escaped(segment: str) -> str:
    if not segment:
        return _ESCAPE
    escaped = "".join(
        one
        if one in _PLAIN or (ord(one) > 127 and one not in _NOT_IN_XML)
        else "".join(f"{_ESCAPE}{byte:02X}" for byte in one.encode())
        for one in segment
    )
    # A dot at the end is dropped by some, and `.` and `..` are folders.
    return f"{escaped[:-1]}{_ESCAPE}2E" if escaped.endswith(".") else escaped


def _key_of(name: str) -> str:
    folder, _, rest = name.partition("/")
    if folder == LONG:
        return urlsafe_b64decode(rest + "=" * (-len(rest) % 4)).decode()
    return "/".join(map(_unescaped, name.split("/")))


def _unescaped(segment: str) -> str:
    if segment == _ESCAPE:
        return ""
    first, *escaped = segment.encode().split(_ESCAPE.encode())
    return (first + b"".join(bytes([int(piece[:2], 16)]) + piece[2:] for piece in escaped)).decode()
