"""The names of blobs: as different as their keys, on any file system."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asm_runtime.stores.artifacts.keys import blob_key, blob_prefix, file_path, key_of_path
from asm_runtime.testing.artifact_conformance import ALIKE

KEYS = (
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=200)
    | st.text("./\\aA=%+~-bd ", min_size=1, max_size=512)
    | st.sampled_from(ALIKE)
).filter(lambda key: len(key.encode()) <= 512)


@given(KEYS)
def test_a_key_is_read_back_from_its_path(key: str) -> None:
    assert blob_key("key", key) == blob_prefix("prefix", key) == key
    assert key_of_path(file_path(key)) == key


@given(KEYS)
def test_every_name_suits_every_file_system(key: str) -> None:
    shard, *folders, name = file_path(key)
    assert len(shard) == 2
    assert name.startswith("b-")
    assert not name.endswith(".")
    assert all(folder.startswith("d-") and folder.endswith("~") for folder in folders)
    for part in (shard, *folders, name):
        assert len(part) <= 143
        assert part.isascii()
        assert part == part.lower()
        assert not set(part) & set('<>:"/\\|?* ')


@given(KEYS, KEYS)
def test_different_keys_have_different_paths(one: str, other: str) -> None:
    assert (file_path(one) == file_path(other)) == (one == other)


def test_no_path_is_the_beginning_of_another_one() -> None:
    paths = {file_path(key) for key in ALIKE}
    assert len(paths) == len(ALIKE)
    for path in paths:
        assert not any(path[: len(other)] == other for other in paths if other != path)


@pytest.mark.parametrize(
    "name",
    [
        "a", "b-", "b-A", "b-=", "b-=4", "b-=zz", "b-=61", "b-=ff", "b-=ED", "b-a b", "b-\u00e9", "b-x\u212a",
        "b-" + "x" * 141, "b-=00", "b-a.", "d-a~", ".DS_Store", "b-=+1", "b- 1", "b-=_1",
    ],
)  # fmt: skip
def test_a_name_that_no_key_has_is_somebody_elses(name: str) -> None:
    assert all(key_of_path((f"{number:02x}", name)) is None for number in range(256))


def test_a_blob_that_was_moved_to_another_folder_is_none() -> None:
    shard, name = file_path("a")
    found = {f"{number:02x}": key_of_path((f"{number:02x}", name)) for number in range(256)}
    assert {place: key for place, key in found.items() if key is not None} == {shard: "a"}


def test_only_control_characters_are_refused() -> None:
    for code in range(0x3000):
        key = chr(code)
        if unicodedata.category(key) == "Cc":
            with pytest.raises(Exception, match="key must be a string of 1 to 512 bytes"):
                blob_key("key", key)
        else:
            assert blob_key("key", key) == key
