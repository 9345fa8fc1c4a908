"""Data sets described by a list of files."""

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
    return listed_dataset(tmp_path / "list.txt", [tmp_path], [tmp_path], 1000)


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
    [("", "no image with depth"), ("a.png None 1\n", "no image with depth"), ("a.png\n", "Line 1")],
)
def test_invalid_lists(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text or "\n")
    with pytest.raises(InputError, match=message):
        len(choose_dataset(DataConfig(root=tmp_path, list_file=tmp_path / "list.txt"), "test"))


def test_files_that_are_missing_or_differ_in_size(nyu: FilePairs, tmp_path: Path) -> None:
    write_pair(tmp_path, "other.png", "kitchen/sync_depth_1.png", (24, 32), 1000)
    with pytest.raises(InputError, match="differ in size"):
        list(nyu)
    (tmp_path / "kitchen" / "sync_depth_1.png").unlink()
    with pytest.raises(InputError, match="no depth image"):
        list(nyu)


def test_list_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(InputError, match=r"list\.txt is not a list of files"):
        choose_dataset(DataConfig(root=tmp_path, list_file=tmp_path / "list.txt"), "test")


def test_a_list_saved_by_a_windows_editor(nyu: FilePairs, tmp_path: Path) -> None:
    text = (tmp_path / "list.txt").read_text()
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert listed_dataset(tmp_path / "list.txt", [tmp_path], [tmp_path], 1000).pairs == nyu.pairs


@pytest.mark.parametrize(
    ("absent", "what", "cure"),
    [("sync_depth_1.png", "1 of 2 depth files", "--depth-root"), ("rgb_1.png", "1 of 2 images", "--root")],
)
def test_list_with_missing_files(absent: str, what: str, cure: str, tmp_path: Path) -> None:
    lines = []
    for scene in ("kitchen", "office"):
        write_pair(tmp_path, f"{scene}/rgb_1.png", f"{scene}/sync_depth_1.png", (4, 4), 1000)
        lines.append(f"/{scene}/rgb_1.png /{scene}/sync_depth_1.png 518.8579\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "office" / absent).unlink()
    with pytest.raises(InputError, match=what) as caught:
        choose_dataset(DataConfig(root=tmp_path, list_file=tmp_path / "list.txt"), "test")
    assert f"office/{absent}" in caught.value.what
    assert str(tmp_path) in caught.value.why
    assert cure in caught.value.cure


def test_the_first_folder_that_has_a_file_counts(tmp_path: Path) -> None:
    write_pair(tmp_path, "a/x/1.png", "a/d/1.png", (4, 4), 1000)
    write_pair(tmp_path, "b/x/1.png", "b/d/1.png", (4, 4), 1000)
    write_pair(tmp_path, "b/x/2.png", "a/d/2.png", (4, 4), 1000)
    write_pair(tmp_path, "a/x/3.png", "b/d/3.png", (4, 4), 1000)
    (tmp_path / "list.txt").write_text("".join(f"x/{i}.png d/{i}.png\n" for i in (1, 2, 3)))
    a, b = tmp_path / "a", tmp_path / "b"
    pairs = listed_dataset(tmp_path / "list.txt", [a, b], [a, b], 1000).pairs
    # After 2 was found in b, 3 is looked for there first; it is only in a.
    assert pairs == ((a / "x/1.png", a / "d/1.png"), (b / "x/2.png", a / "d/2.png"), (a / "x/3.png", b / "d/3.png"))


def test_a_depth_root_without_a_list(tmp_path: Path) -> None:
    write_pair(tmp_path, "rgb/1.png", "depth/1.png", (4, 4), 1000)
    with pytest.raises(OptionError, match="list of files"):
        choose_dataset(DataConfig(root=tmp_path, depth_root=tmp_path / "depth"), "test")
