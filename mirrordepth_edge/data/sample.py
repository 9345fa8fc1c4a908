"""Samples and data sets: an image with measured depth, and sequences of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.images import read_depth_png, read_image
from mirrordepth_edge.imaging.preprocess import Frame


class Sample(NamedTuple):
    """An image and its depth."""

    name: str
    frame: Frame
    """uint8 RGB `[H, W, 3]`."""
    depth_m: npt.NDArray[np.float32]
    """float32 `[H, W]`, metres; 0 is no measurement."""


class DepthDataset(ABC):
    """Images with measured depth in a fixed order, read on access.

    Instances are pickled to data loader processes, so they hold no open files.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            InputError: its files cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of a sample, unique in the data set; does not read the sample."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Every file of the data set, in order."""

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256 over sample names and file sizes: depends on the data, not on its location."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self.name(index)}\n".encode())
        # Sizes, not contents: hashing hundreds of gigabytes would delay every start.
        for path in self.files():
            # A missing file is reported when it is read.
            size = path.stat().st_size if path.is_file() else -1
            digest.update(f"{path.name} {size}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class FilePairs(DepthDataset):
    """Images and 16-bit depth PNGs, one file each."""

    pairs: tuple[tuple[Path, Path], ...]
    """Paths of image and depth."""
    units_per_metre: float = 1000.0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image, depth = self.pairs[index]
        frame, depth_m = read_image(image), read_depth_png(depth, self.units_per_metre)
        if frame.shape[:2] != depth_m.shape:
            raise InputError(
                f"{image} and {depth} differ in size.",
                f"The image is {frame.shape[:2]}, its depth {depth_m.shape} (rows, columns).",
                "Pair each image with depth registered to it.",
            )
        return Sample(self.name(index), frame, depth_m)

    def name(self, index: int) -> str:
        """Path of the image below the common folder of all images, without suffix."""
        return self.pairs[index][0].relative_to(self._common_folder).with_suffix("").as_posix()

    def files(self) -> list[Path]:
        return [path for pair in self.pairs for path in pair]

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{super().fingerprint()} {self.units_per_metre}".encode()).hexdigest()

    @cached_property
    def _common_folder(self) -> Path:
        folders = {image.parent for image, _ in self.pairs}
        common = min(folders, key=lambda folder: len(folder.parts))
        while not all(folder.is_relative_to(common) for folder in folders):
            common = common.parent
        return common


@dataclass(frozen=True, kw_only=True)
class InMemory(DepthDataset):
    """Samples held in memory."""

    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def name(self, index: int) -> str:
        return self.samples[index].name

    def files(self) -> list[Path]:
        return []


@dataclass(frozen=True, kw_only=True)
class Mapped(DepthDataset):
    """A data set with a function applied to each sample, such as a crop."""

    of: DepthDataset
    function: Callable[[Sample], Sample]
    """A module-level function, so that it can be pickled. Its name is part of the fingerprint."""

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> Sample:
        return self.function(self.of[index])

    def name(self, index: int) -> str:
        return self.of.name(index)

    def files(self) -> list[Path]:
        return self.of.files()

    def fingerprint(self) -> str:
        identity = f"{self.of.fingerprint()} {self.function.__qualname__}"
        return hashlib.sha256(identity.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Selected(DepthDataset):
    """A subset of a data set."""

    of: DepthDataset
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.of[self.indices[index]]

    def name(self, index: int) -> str:
        return self.of.name(self.indices[index])

    def files(self) -> list[Path]:
        return self.of.files()

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.of.fingerprint()} {self.indices}".encode()).hexdigest()
