"""The names of objects: as different as their keys, and such as every service takes."""

from __future__ import annotations

import pytest
from hypothesis import given

from asm_runtime.stores.artifacts.object_names import (
    LONG,
    MAX_NAME_BYTES,
    folder_of_prefix,
    key_of_object,
    object_name,
)
from asm_runtime.testing.artifact_conformance import ALIKE
from tests.stores.artifacts.test_keys import KEYS


@given(KEYS)
def test_a_key_is_read_back_from_its_name(key: str) -> None:
    assert key_of_object(object_name(key)) == key


@given(KEYS)
def test_every_name_suits_every_service(key: str) -> None:
    name = object_name(key)
    assert len(name.encode()) <= MAX_NAME_BYTES
    segments = name.split("/")
    assert all(segments)
    assert not any(segment.endswith(".") for segment in segments)
    assert not set(name) & set('\\{}^%`[]"<>~#|? +&*:\ufffe\uffff')


@given(KEYS)
def test_a_key_lies_in_the_folder_of_each_of_its_prefixes(key: str) -> None:
    for length in range(0, len(key) + 1, 7):
        folder = folder_of_prefix(key[:length])
        name = object_name(key)
        assert folder is None or name.startswith((f"{folder}/", f"{LONG}/"))


def test_the_names_of_keys_that_look_alike_differ() -> None:
    assert len(set(map(object_name, ALIKE))) == len(ALIKE)


def test_a_plain_key_is_its_name() -> None:
    assert object_name("runs/run_1/Patch-2.diff") == "runs/run_1/Patch-2.diff"
    assert object_name("日本/é") == "日本/é"
    assert object_name("a//b") == "a/=/b"
    assert object_name("../a b") == ".=2E/a=20b"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a//b",
        "/a",
        "a b",
        "a%20b",
        "=zz",
        "a=2",
        "a.",
        "=61",
        "=ff",
        f"{LONG}/YQ",
        f"{LONG}/!",
        LONG,
        "a/=/=2f",
    ],
)
def test_a_name_that_no_key_has_is_somebody_elses(name: str) -> None:
    assert key_of_object(name) is None
