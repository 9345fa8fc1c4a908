"""Lists of files, as the field shares NYU and KITTI."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.config import DataConfig
from mirrordepth_edge.data.choose import choose_dataset
from mirrordepth_edge.data.listed import listed_dataset
from mirrordepth_edge.data.sample import FilePairs
from mirrordepth_edge.errors import InputError, OptionError


def write_pair(root: Path, picture: str, depth: str, shape: tuple[int, int], units_per_metre: int) -> None:
    """Red counts columns, green rows; depth is a hundredth of a metre for each row and column."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    frame = np.stack([columns % 256, rows % 256, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    depth_m = (rows + columns) / 100
    for name, array in ((picture, frame[..., ::-1]), (depth, (depth_m * units_per_metre).round().astype(np.uint16))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), array)


@pytest.fixture
def nyu(tmp_path: Path) -> FilePairs:
    write_pair(tmp_path, "kitchen/rgb_1.png", "kitchen/sync_depth_1.png", (48, 64), 1000)
    (tmp_path / "list.txt").write_text("/kitchen/rgb_1.png /kitchen/sync_depth_1.png 518.8579\n\n")
    return listed_dataset(tmp_path / "list.txt", tmp_path, tmp_path, 1000)


def test_nyu_as_bts_lists_it(nyu: FilePairs) -> None:
    (sample,) = list(nyu)
    assert len(nyu) == 1
    assert sample.name == "rgb_1"
    assert sample.frame[3, 7].tolist() == [7, 3, 0]
    assert sample.depth_m[3, 7] == pytest.approx(0.1)


def test_kitti_with_the_kb_crop_and_a_picture_without_depth(tmp_path: Path) -> None:
    raw, truth = tmp_path / "raw", tmp_path / "truth"
    write_pair(tmp_path, "raw/drive/5.png", "truth/drive/5.png", (375, 1242), 256)
    (tmp_path / "eigen.txt").write_text("drive/4.png None 721.5377\ndrive/5.png drive/5.png 721.5377\n")
    data = choose_dataset(
        DataConfig(root=raw, units_per_metre=256, list_file=tmp_path / "eigen.txt", depth_root=truth, kb_crop=True),
        "test",
    )
    (sample,) = list(data)
    assert len(data) == 1
    assert sample.frame.shape == (352, 1216, 3)
    top, left = 375 - 352, int((1242 - 1216) / 2)
    assert (top, left) == (23, 13)
    assert sample.frame[0, 0].tolist() == [left, top, 0]
    assert sample.depth_m[0, 0] == pytest.approx((top + left) / 100, abs=1 / 512)


def test_a_picture_too_small_for_the_crop(nyu: FilePairs, tmp_path: Path) -> None:
    cropped = choose_dataset(DataConfig(root=tmp_path, list_file=tmp_path / "list.txt", kb_crop=True), "test")
    with pytest.raises(InputError, match="too small"):
        list(cropped)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no pictures with depth"), ("a.png None 1\n", "no pictures with depth"), ("a.png\n", "Line 1")],
)
def test_lists_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text or "\n")
    with pytest.raises(InputError, match=message):
        len(choose_dataset(DataConfig(root=tmp_path, list_file=tmp_path / "list.txt"), "test"))


def test_files_that_are_missing_or_differ_in_size(nyu: FilePairs, tmp_path: Path) -> None:
    write_pair(tmp_path, "other.png", "kitchen/sync_depth_1.png", (24, 32), 1000)
    with pytest.raises(InputError, match="differ in size"):
        list(nyu)
    (tmp_path / "kitchen" / "sync_depth_1.png").unlink()
    with pytest.raises(InputError, match="no depth picture"):
        list(nyu)


def test_options_of_lists_without_a_list(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="list of files"):
        choose_dataset(DataConfig(root=tmp_path, kb_crop=True), "test")
