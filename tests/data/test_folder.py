"""Data sets in a folder, valid and invalid."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.errors import InputError


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def write_pair(root: Path, name: str, suffix: str = ".png", value: int = 1) -> None:
    write(root / "rgb" / f"{name}{suffix}", np.full((6, 8, 3), (30, 20, 10), np.uint8))
    write(root / "depth" / f"{name}.png", np.full((6, 8), 1000 * value, np.uint16))


def test_pairs_in_the_order_of_their_names(tmp_path: Path) -> None:
    for value, name in ((2, "b"), (1, "a"), (3, "c.d")):
        write_pair(tmp_path, name, value=value)
    data = folder_dataset(tmp_path)
    assert [sample.name for sample in data] == ["a", "b", "c.d"]
    assert [float(sample.depth_m.max()) for sample in data] == [1, 2, 3]
    assert data[0].frame[0, 0].tolist() == [10, 20, 30], "RGB"
    assert folder_dataset(tmp_path, units_per_metre=500)[2].depth_m[0, 0] == 6


@pytest.mark.parametrize("pictures", ["rgb", "image", "images", "color", "colour"])
@pytest.mark.parametrize("depth", ["depth", "depths"])
def test_other_names_of_the_two_folders(pictures: str, depth: str, tmp_path: Path) -> None:
    write_pair(tmp_path, "1", ".jpg")
    (tmp_path / "rgb").rename(tmp_path / pictures)
    (tmp_path / "depth").rename(tmp_path / depth)
    assert len(list(folder_dataset(tmp_path))) == 1


def test_scenes_are_part_of_the_name(tmp_path: Path) -> None:
    for name in ("kitchen/1", "office/1"):
        write_pair(tmp_path, name)
    (tmp_path / "rgb" / "office" / "._1.png").write_bytes(b"what macOS leaves behind")
    assert [sample.name for sample in folder_dataset(tmp_path)] == ["kitchen/1", "office/1"]


def refused(root: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        list(folder_dataset(root))
    return caught.value


def test_missing_root_or_file(tmp_path: Path) -> None:
    assert f"There is no folder {tmp_path / 'nowhere'}" in refused(tmp_path / "nowhere").what
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refused(tmp_path / "file").what


def test_empty_folders(tmp_path: Path) -> None:
    assert "has no folder of images" in refused(tmp_path).what
    (tmp_path / "rgb").mkdir()
    assert "has no folder of depth" in refused(tmp_path).what
    (tmp_path / "depth").mkdir()
    assert "no images in" in refused(tmp_path).what
    assert "empty" in refused(tmp_path).why
    (tmp_path / "rgb" / "1.npy").write_bytes(b"x")
    assert "1.npy" in refused(tmp_path).why


def test_mixed_folders(tmp_path: Path) -> None:
    write_pair(tmp_path, "1", ".jpg")
    (tmp_path / "images").mkdir()
    assert "both rgb and images" in refused(tmp_path).what
    (tmp_path / "images").rmdir()
    write_pair(tmp_path, "1.a", ".png")  # sorts between the two that share a name
    write_pair(tmp_path, "1", ".png")
    assert "Several images" in refused(tmp_path).what
    assert "1.png" in refused(tmp_path).why


def test_missing_partners(tmp_path: Path) -> None:
    for name in "abc":
        write_pair(tmp_path, name)
    (tmp_path / "depth" / "b.png").unlink()
    (tmp_path / "depth" / "c.png").unlink()
    assert refused(tmp_path).what.startswith("2 images")
    assert "b.png" in refused(tmp_path).what


@pytest.mark.parametrize("bad", [np.zeros((6, 8), np.uint8), np.zeros((6, 8, 3), np.uint16)])
def test_depth_of_another_kind(bad: np.ndarray, tmp_path: Path) -> None:
    write_pair(tmp_path, "1")
    path = write(tmp_path / "depth" / "1.png", bad)
    error = refused(tmp_path)
    assert str(path) in error.what
    assert str(bad.dtype) in error.why
    assert "16-bit" in error.cure


@pytest.mark.parametrize("which", ["rgb", "depth"])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"no picture at all"])
def test_damaged_files_are_named(which: str, content: bytes, tmp_path: Path) -> None:
    for name in "ab":
        write_pair(tmp_path, name)
    damaged = tmp_path / which / "b.png"
    damaged.write_bytes(content)
    assert str(damaged) in refused(tmp_path).what


def test_a_picture_of_another_size_than_its_depth(tmp_path: Path) -> None:
    write_pair(tmp_path, "1")
    write(tmp_path / "depth" / "1.png", np.ones((8, 6), np.uint16))
    error = refused(tmp_path)
    assert "differ in size" in error.what
    assert "(6, 8)" in error.why
    assert "(8, 6)" in error.why
