"""Files are complete or absent."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.support.files import atomic_write, ensure_folder, existing_file, sha256_of


def test_the_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "made" / "on the way" / "model.onnx"
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent == target.parent, "renaming is atomic within one folder only"
        assert temporary.suffix == ".onnx"
        assert not target.exists()
    assert target.read_bytes() == b"half"
    assert list(target.parent.iterdir()) == [target]


def break_off(path: Path, reason: type[BaseException]) -> None:
    """Begin to write `path`, and stop for `reason`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise reason


@pytest.mark.parametrize("reason", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, reason: type[BaseException]) -> None:
    with pytest.raises(reason):
        break_off(tmp_path / "new", reason)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        break_off(target, KeyboardInterrupt)
    assert target.read_bytes() == b"old"
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left") as caught, atomic_write(tmp_path / "new"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "Free space" in caught.value.cure
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["model.onnx", "deeper/model.onnx"])
def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(InputError) as caught, atomic_write(tmp_path / "file" / below):
        pytest.fail("the block must not run")
    assert "model.onnx" in caught.value.what
    assert "another folder" in caught.value.cure
    with pytest.raises(InputError, match="Cannot write"):
        ensure_folder(tmp_path / "file" / "sub")


def test_a_read_only_folder_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        (tmp_path / "probe").touch()
    except PermissionError:
        with pytest.raises(InputError, match="Permission denied"), atomic_write(tmp_path / "new"):
            pass
        with pytest.raises(InputError, match="Permission denied"):
            ensure_folder(tmp_path)
    else:
        pytest.skip("this user may write into read-only folders (root)")
    finally:
        tmp_path.chmod(0o755)


def test_ensure_folder_makes_an_empty_folder(tmp_path: Path) -> None:
    folder = ensure_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_existing_file_has_three_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        existing_file(tmp_path / "missing", "checkpoint")
    with pytest.raises(InputError, match="folder"):
        existing_file(tmp_path, "checkpoint")
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="0 bytes"):
        existing_file(tmp_path / "empty", "checkpoint")
    (tmp_path / "full").write_bytes(b"x")
    assert existing_file(tmp_path / "full", "checkpoint") == tmp_path / "full"


@pytest.mark.parametrize("size", [0, 3, 1 << 20, (1 << 20) + 1])
def test_sha256(tmp_path: Path, size: int) -> None:
    data = b"\xa5" * size
    (tmp_path / "data").write_bytes(data)
    assert sha256_of(tmp_path / "data") == hashlib.sha256(data).hexdigest()


def test_sha256_of_abc(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == expected
