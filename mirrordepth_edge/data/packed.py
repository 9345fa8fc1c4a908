"""NYU Depth v2 with an HDF5 file for each picture, in folders or in tar shards.

fast-depth (arXiv 1903.03273) published it as `train/SCENE/00001.h5` and `val/official/00001.h5`:
47,584 training pictures and the 654 of the official test split. The Hugging Face data set
`sayakpaul/nyu_depth_v2` is the same files in uncompressed shards, `data/train-000000.tar` to
`data/val-000001.tar`. A file holds `rgb`, uint8 `[3, 480, 640]`, and `depth`, float `[480, 640]` in
metres, 0 where there is none. Users report that its test depth is the in-filled one; the field
evaluates on raw depth, so do not compare figures on it. Hugging Face's copy is marked Apache 2.0.
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

PUBLISHED_AS: dict[Part, str] = {"train": "train", "test": "val"}
ROOTS = (".", "nyudepthv2")
"""Where the folders of a part are, below what a user names; the second is how the download unpacks."""
SHARD_FOLDERS = (".", "data")
BLOCK = 512
"""A tar file is made of blocks of so many bytes, and ends with some of zeros."""
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""How gzip, bzip2, xz and zstd files begin."""


class Piece(NamedTuple):
    """One HDF5 file: alone, or a stretch of a shard."""

    name: str
    path: Path
    offset: int = 0
    size: int = -1
    """In bytes; -1 is up to the end."""


@dataclass(frozen=True, kw_only=True)
class PackedPairs(DepthDataset):
    """Pictures and depth in HDF5 files of their own."""

    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return len(self.pieces)

    def name(self, index: int) -> str:
        return self.pieces[index].name

    def files(self) -> list[Path]:
        return list(dict.fromkeys(piece.path for piece in self.pieces))

    def __getitem__(self, index: int) -> Sample:
        piece = self.pieces[index]
        existing_file(piece.path, "file of pictures")
        with piece.path.open("rb") as file:
            file.seek(piece.offset)
            stream = BytesIO(file.read(piece.size))
        whole = piece.size < 0
        source = str(piece.path) if whole else f"{piece.name} in {piece.path}"
        cure = f"Download {piece.path.name} again."
        rgb, depth = read_hdf5(
            stream, ("rgb", "depth"), ..., name=source, what="NYU picture of fast-depth's kind", cure=cure
        )
        if rgb.dtype != np.uint8 or depth.dtype.kind != "f" or rgb.shape != (3, *depth.shape):
            raise InputError(
                f"{source} holds no picture with depth.",
                f"rgb is {rgb.dtype} {rgb.shape}, depth {depth.dtype} {depth.shape}; "
                "they should be uint8 [3, H, W] and float [H, W].",
                cure,
            )
        frame: Frame = cv2.merge(tuple(rgb))  # [H, W, 3]; several times faster than NumPy
        return Sample(piece.name, frame, depth.astype(np.float32, copy=False))


def packed_dataset(root: Path, part: Part) -> PackedPairs | None:
    """The part that is below `root`, in folders or else in shards; None where there is neither.

    Raises:
        InputError: a shard cannot be read, or a picture is there twice.
    """
    folder = _folder(root, part)
    if folder is not None:
        pieces = [Piece(_name(path.as_posix()), path) for path in sorted(_h5_files(folder))]
    else:
        pieces = [piece for shard in _shards(root, part) for piece in _members(shard)]
    twice = [name for name, count in Counter(piece.name for piece in pieces).items() if count > 1]
    if twice:
        first, second = [piece.path for piece in pieces if piece.name == twice[0]][:2]
        raise InputError(
            f"{len(twice)} pictures are there twice, such as {twice[0]}.",
            f"It is in {first} and in {second}.",
            f"Move {second} away if it is a copy.",
        )
    return PackedPairs(pieces=tuple(pieces)) if pieces else None


def holds_packed(root: Path, part: Part) -> bool:
    """Whether `packed_dataset` has something to read, without reading it."""
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


def _members(shard: Path) -> list[Piece]:
    """Where the HDF5 files of a shard begin and how long they are."""
    existing_file(shard, "shard")
    with shard.open("rb") as file:
        if file.read(BLOCK).startswith(COMPRESSED):
            raise InputError(
                f"{shard} is compressed.",
                "Pictures are read from where they lie in the shard, which only a plain tar file allows.",
                f"mv {shard} {shard}.gz && gunzip {shard}.gz  (or unxz, unzstd)",
            )
        try:
            pieces, end = [], 0
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                    # macOS packs a ._NAME beside each file.
                    if member.isfile() and re.search(r"(^|/)[^./][^/]*\.h5$", member.name):
                        pieces.append(Piece(_name(member.name), shard, member.offset_data, member.size))
            # tarfile takes a damaged header for the end, which is a block of zeros.
            file.seek(end)
            if any(file.read(BLOCK)):
                raise tarfile.ReadError(f"the header at byte {end} is damaged")
        except (tarfile.TarError, OSError) as error:
            raise InputError(
                f"{shard} is no whole tar file.", f"Python says: {error}.", f"Download {shard.name} again."
            ) from error
    return pieces


def _name(path: str) -> str:
    """`SCENE/NUMBER`, from the path of a file."""
    return "/".join(PurePosixPath(path).with_suffix("").parts[-2:])
