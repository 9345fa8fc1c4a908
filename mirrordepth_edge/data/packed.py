"""NYU Depth v2 with one HDF5 file per image, in folders or in tar shards.

fast-depth (arXiv 1903.03273) published it as `train/SCENE/00001.h5` and `val/official/00001.h5`:
47,584 training images and the 654 of the official test split. The Hugging Face data set
`sayakpaul/nyu_depth_v2` has the same files in uncompressed shards, `data/train-000000.tar` to
`data/val-000001.tar`, under Apache 2.0. A file holds `rgb`, uint8 `[3, 480, 640]`, and `depth`, float
`[480, 640]`, metres, 0 where nothing was measured. Users report that its test depth is in-filled. Published
results are on raw depth and are not comparable.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import cv2
import numpy as np

from mirrordepth_edge.data.hdf5 import read_hdf5
from mirrordepth_edge.data.sample import DepthDataset, Sample
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.support.files import existing_file

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")

PUBLISHED_AS: dict[Part, str] = {"train": "train", "test": "val"}
ROOTS = (".", "nyudepthv2")
"""Folders below --root that may hold the parts; the second is the top folder of the archive."""
SHARD_FOLDERS = (".", "data")
BLOCK = 512
"""Block size of tar, bytes; an archive ends with blocks of zeros."""
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""Magic bytes of gzip, bzip2, xz and zstd."""


class Hdf5Entry(NamedTuple):
    """One HDF5 file, on disk or inside a shard."""

    name: str
    path: Path
    offset: int = 0
    size: int = -1
    """Bytes; -1 for the whole file."""


@dataclass(frozen=True, kw_only=True)
class PackedPairs(DepthDataset):
    """Images and depth, one HDF5 file each."""

    entries: tuple[Hdf5Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        return self.entries[index].name

    def files(self) -> list[Path]:
        return list(dict.fromkeys(entry.path for entry in self.entries))

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        existing_file(entry.path, "HDF5 file")
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            stream = BytesIO(file.read(entry.size))
        whole = entry.size < 0
        source = str(entry.path) if whole else f"{entry.name} in {entry.path}"
        cure = f"Download {entry.path.name} again."
        rgb, depth = read_hdf5(
            stream, ("rgb", "depth"), ..., name=source, what="NYU image file in fast-depth's format", cure=cure
        )
        if rgb.dtype != np.uint8 or depth.dtype.kind != "f" or rgb.shape != (3, *depth.shape):
            raise InputError(
                f"{source} is not an image with depth.",
                f"rgb is {rgb.dtype} {rgb.shape}, depth {depth.dtype} {depth.shape}; "
                "expected uint8 [3, H, W] and float [H, W].",
                cure,
            )
        frame: Frame = cv2.merge(tuple(rgb))  # [H, W, 3]; several times faster than a NumPy transpose
        return Sample(entry.name, frame, depth.astype(np.float32, copy=False))


def packed_dataset(root: Path, part: Part) -> PackedPairs | None:
    """Open a part of the data set below `root`, from folders or else from shards; None if there is neither.

    Raises:
        InputError: a shard cannot be read, or an image exists twice.
    """
    folder = _folder(root, part)
    if folder is not None:
        entries = [Hdf5Entry(_entry_name(path.as_posix()), path) for path in sorted(_h5_files(folder))]
    else:
        entries = [entry for shard in _shards(root, part) for entry in _members(shard)]
    twice = [name for name, count in Counter(entry.name for entry in entries).items() if count > 1]
    if twice:
        first, second = [entry.path for entry in entries if entry.name == twice[0]][:2]
        raise InputError(
            f"{len(twice)} images exist twice, such as {twice[0]}.",
            f"It is in both {first} and {second}.",
            f"Remove {second} if it is a copy.",
        )
    return PackedPairs(entries=tuple(entries)) if entries else None


def holds_packed(root: Path, part: Part) -> bool:
    """Whether `packed_dataset` would find files; reads none of them."""
    return _folder(root, part) is not None or bool(_shards(root, part))


def _folder(root: Path, part: Part) -> Path | None:
    folders = (root / name / PUBLISHED_AS[part] for name in ROOTS)
    return next((folder for folder in folders if any(True for _ in _h5_files(folder))), None)


def _h5_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.glob("*/*.h5") if not path.name.startswith("."))


def _shards(root: Path, part: Part) -> list[Path]:
    pattern = re.compile(rf"{PUBLISHED_AS[part]}-\d+\.tar")
    for folder in SHARD_FOLDERS:
        shards = sorted(path for path in (root / folder).glob("*.tar") if pattern.fullmatch(path.name))
        if shards:
            return shards
    return []


def _members(shard: Path) -> list[Hdf5Entry]:
    """List the HDF5 files of a shard with offset and size."""
    existing_file(shard, "shard")
    with shard.open("rb") as file:
        if file.read(BLOCK).startswith(COMPRESSED):
            raise InputError(
                f"{shard} is compressed.",
                "Random access requires an uncompressed tar file.",
                f"mv {shard} {shard}.gz && gunzip {shard}.gz  (or unxz, unzstd)",
            )
        try:
            entries, end = [], 0
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                    # macOS adds a ._NAME beside each file.
                    if member.isfile() and re.search(r"(^|/)[^./][^/]*\.h5$", member.name):
                        entries.append(Hdf5Entry(_entry_name(member.name), shard, member.offset_data, member.size))
            # tarfile mistakes a damaged header for the end of the archive; the real end is a block of zeros.
            file.seek(end)
            if any(file.read(BLOCK)):
                raise tarfile.ReadError(f"the header at byte {end} is damaged")
        except (tarfile.TarError, OSError) as error:
            raise InputError(
                f"{shard} is not a complete tar file.", f"tarfile: {error}.", f"Download {shard.name} again."
            ) from error
    return entries


def _entry_name(path: str) -> str:
    """`SCENE/NUMBER` from the path of a file."""
    return "/".join(PurePosixPath(path).with_suffix("").parts[-2:])
