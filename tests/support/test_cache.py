"""Entries are complete or absent, damage is noticed, and the oldest are evicted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.support.cache import ABANDONED_S, Cache, digest, read_checked, user_cache, write_checked


@dataclass(frozen=True)
class Settings:
    size: int


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_it_is_below_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    assert user_cache("engines") == tmp_path / "mirrordepth-edge" / "engines"


def test_every_part_of_a_key_counts() -> None:
    keys = [("a", "b"), ("ab",), ("a", None), ("a", Settings(1)), ("a", Settings(2)), (["a", "b"],)]
    assert len({digest(*key) for key in keys}) == len(keys)
    assert digest(Settings(1)) == digest(Settings(1))


def test_a_name_leads_and_the_suffix_ends(tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path, suffix=".x")
    assert cache.path("key").name == f"{digest('key')[:16]}.x"
    assert cache.path("key", name="tiny").name == f"tiny-{digest('key')[:16]}.x"


@pytest.mark.parametrize("damage", [b"", b"cut", None])
def test_damaged_content_is_not_returned(damage: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "entry"
    assert read_checked(path) is None
    write_checked(path, b"content")
    assert read_checked(path) == b"content"
    stored = path.read_bytes()
    path.write_bytes(stored[:-1] + b"x" if damage is None else damage)
    assert read_checked(path) is None


def test_the_entries_used_last_stay(tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path, suffix=".x", max_per_name=2)
    paths = [cache.path(number, name="one") for number in range(3)]
    for number, path in enumerate(paths):
        cache.write(path, b"content")
        age(path, 100 - number)
    assert cache.entries("one") == [paths[2], paths[1]]
    cache.touch(paths[1])
    cache.write(paths[0], b"content")
    assert set(cache.entries("one")) == {paths[0], paths[1]}
    cache.write(cache.path(0, name="other"), b"content")
    (tmp_path / "other file").write_text("not an entry")
    cache.evict(keep=paths[0])
    assert len(cache.entries()) == 3
    assert (tmp_path / "other file").exists()


def test_large_entries_are_evicted_by_size(tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path, suffix=".x", max_bytes=250)
    paths = [cache.path(number) for number in range(3)]
    for number, path in enumerate(paths):
        cache.write(path, b"0" * 68)  # 100 bytes with the checksum
        age(path, 100 - number)
    assert cache.entries() == [paths[2], paths[1]]
    cache.write(paths[0], b"0" * 1000)
    assert cache.entries() == [paths[0]], "the one just written stays"


def test_files_of_a_killed_process_are_deleted_after_a_day(tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path, suffix=".x")
    leftovers = [tmp_path / ".file", tmp_path / ".folder", tmp_path / ".in-use"]
    leftovers[0].write_text("half")
    for folder in leftovers[1:]:
        folder.mkdir()
    for leftover in leftovers[:2]:
        age(leftover, ABANDONED_S + 1)
    cache.write(cache.path(1), b"content")
    assert [path.exists() for path in leftovers] == [False, False, True]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path / "cache", suffix=".x")
    entry = cache.path(1)
    with cache.new_folder(entry, entry.exists) as temporary:
        (temporary / "file").write_text("content")
        assert cache.entries() == []
    assert (entry / "file").read_text() == "content"
    with pytest.raises(ZeroDivisionError), cache.new_folder(cache.path(2), lambda: False):
        raise ZeroDivisionError
    assert list(cache.folder.iterdir()) == [entry]


@pytest.mark.parametrize("is_valid", [True, False])
def test_an_entry_that_another_process_made_stays_if_it_is_valid(is_valid: bool, tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path, suffix=".x")
    entry = cache.path(1)
    with cache.new_folder(entry, lambda: is_valid) as temporary:
        (temporary / "mine").touch()
        entry.mkdir()
        (entry / "theirs").touch()
    assert [path.name for path in entry.iterdir()] == ["theirs" if is_valid else "mine"]
    assert cache.entries() == [entry]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = Cache(folder=tmp_path / "file", suffix=".x")
    with pytest.raises(InputError, match="Cannot write"):
        cache.write(cache.path(1), b"content")
    with pytest.raises(InputError, match="Cannot write"), cache.new_folder(cache.path(1), lambda: False):
        pass
