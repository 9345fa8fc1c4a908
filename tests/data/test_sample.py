"""Files that are damaged in unusual ways, and fingerprints of data sets."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from mirrordepth_edge.data.folder import folder_dataset
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.images import read_depth_png, read_image


def test_a_png_that_claims_to_be_huge(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 70_000, 70_000, 16, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + bytes(100))
    with pytest.raises(InputError, match=r"huge\.png"):
        read_image(path)
    with pytest.raises(InputError, match=r"huge\.png"):
        read_depth_png(path, 1000)


def test_truncated_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"half\.jpg"):
        read_image(path)


def test_fingerprint_depends_on_data_and_scale_not_on_the_path(rgbd_folder: Path, tmp_path: Path) -> None:
    here = folder_dataset(rgbd_folder).fingerprint()
    moved = shutil.copytree(rgbd_folder, tmp_path / "elsewhere" / "moved")
    assert folder_dataset(moved).fingerprint() == here
    assert folder_dataset(moved, 256.0).fingerprint() != here
    (moved / "rgb" / "03.png").write_bytes(b"shorter")
    assert folder_dataset(moved).fingerprint() != here
