"""Problems with stored timings never make a build fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mirrordepth_edge.engines import timing_cache
from mirrordepth_edge.support.cache import read_checked, write_checked


def test_a_failed_copy_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder would read it."""
    cache, copy = tmp_path / "kept.cache", tmp_path / "timing.cache"
    write_checked(cache, b"timed")

    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_half)
        timing_cache.load(cache, copy)
    assert not copy.exists()
    assert read_checked(cache) == b"timed"
    timing_cache.load(cache, copy)
    assert copy.read_bytes() == b"timed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    write_checked(tmp_path / "kept.cache", b"timed")
    full = tmp_path / "timing.cache"
    full.symlink_to("/dev/full")
    timing_cache.load(tmp_path / "kept.cache", full)
    assert not full.is_symlink()


def test_an_unreadable_cache(tmp_path: Path) -> None:
    (tmp_path / "kept.cache").mkdir()
    timing_cache.load(tmp_path / "kept.cache", tmp_path / "timing.cache")
    assert not (tmp_path / "timing.cache").exists()
