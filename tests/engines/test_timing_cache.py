"""Timings of kernels are worth having, and never worth a failed build."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from mirrordepth_edge.engines import timing_cache


def test_no_room_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder does not find half a cache either."""
    cache, copy = tmp_path / "kept.cache", tmp_path / "timing.cache"
    cache.write_bytes(b"timed")

    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(shutil, "copyfile", half)
        timing_cache.take(cache, copy)
    assert not copy.exists()
    assert cache.read_bytes() == b"timed"
    timing_cache.take(cache, copy)
    assert copy.read_bytes() == b"timed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    (tmp_path / "kept.cache").write_bytes(b"timed")
    full = tmp_path / "timing.cache"
    full.symlink_to("/dev/full")
    timing_cache.take(tmp_path / "kept.cache", full)
    assert not full.is_symlink()


def test_a_cache_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "kept.cache").mkdir()
    timing_cache.take(tmp_path / "kept.cache", tmp_path / "timing.cache")
    assert not (tmp_path / "timing.cache").exists()
