"""Keys of blobs, and the names under which a file system keeps them apart."""

from __future__ import annotations

import unicodedata
from hashlib import sha256
from typing import Any

from asm_runtime import options

__all__ = ["MAX_KEY_BYTES", "blob_key", "blob_prefix", "file_path", "is_folder", "key_of_path"]

MAX_KEY_BYTES = 512

_ALLOWED = f"a string of 1 to {MAX_KEY_BYTES} bytes of UTF-8 without control characters"

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-.")
_SLASH, _ESCAPE = "+", "="
_BLOB, _FOLDER, _FOLDER_END = "b-", "d-", "~"

NAME_PART = 140
"""How many characters of an encoded key one name has at most: with what stands around them no more than
143 bytes, which is what the strictest file systems in use allow.
Source: eCryptfs leaves 143 of the 255 bytes of a name (launchpad.net/bugs/344878)."""


def blob_key(name: str, value: Any) -> str:
    """A text that can be a key.

    Raises:
        ValidationError: It is none; says what is allowed.
    """
    if not value or not _is_text(value):
        raise options.refused(name, value, _ALLOWED)
    return str.__str__(value)


def blob_prefix(name: str, value: Any) -> str:
    """A text that keys can begin with; empty: all do.

    Raises:
        ValidationError: No key can.
    """
    if not _is_text(value):
        raise options.refused(name, value, _ALLOWED.replace("1 to", "at most"))
    return str.__str__(value)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > MAX_KEY_BYTES:
        return False
    try:
        byte_size = len(value.encode())
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return byte_size <= MAX_KEY_BYTES and not any(unicodedata.category(one) == "Cc" for one in value)


def file_path(key: str) -> tuple[str, ...]:
    """Where a blob lies, as names from the root on: a folder by hash, folders for what is long, the file.

    The names differ wherever keys do, also where upper and lower case or the forms of an accent are the
    same. None begins with a dot or is one that a system keeps for itself.
    """
    encoded = _encoded(key)
    parts = [encoded[start : start + NAME_PART] for start in range(0, len(encoded), NAME_PART)]
    last = parts.pop()
    if last.endswith("."):  # which Windows would drop
        last = f"{last[:-1]}{_ESCAPE}2e"
    return (_shard(key), *(f"{_FOLDER}{part}{_FOLDER_END}" for part in parts), f"{_BLOB}{last}")


def key_of_path(path: tuple[str, ...]) -> str | None:
    """The key of a blob that lies there; None: no blob does."""
    _, *folders, name = path
    if not name.startswith(_BLOB):
        return None
    encoded = "".join(part[len(_FOLDER) : -len(_FOLDER_END)] for part in folders) + name[len(_BLOB) :]
    try:
        key = _decoded(encoded)
    except ValueError:
        return None
    # The one name that the key has, and not another that means the same.
    return key if key and _is_text(key) and file_path(key) == path else None


def is_folder(name: str) -> bool:
    """Whether a folder of that name may hold a part of the long names."""
    return name.startswith(_FOLDER) and name.endswith(_FOLDER_END)


def _shard(key: str) -> str:
    return f"{sha256(key.encode()).digest()[0]:02x}"


def _encoded(key: str) -> str:
    return "".join(
        chr(byte) if byte in _PLAIN else _SLASH if byte == 0x2F else f"{_ESCAPE}{byte:02x}"
        for byte in key.encode()
    )


def _decoded(encoded: str) -> str:
    first, *escaped = encoded.encode("ascii").replace(_SLASH.encode(), b"/").split(_ESCAPE.encode())
    raw = first + b"".join(bytes([int(piece[:2], 16)]) + piece[2:] for piece in escaped)
    return raw.decode()
