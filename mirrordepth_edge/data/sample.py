"""One picture with its depth, how both are read, and what every data set is."""

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
from mirrordepth_edge.imaging.pictures import read_depth_png, read_picture
from mirrordepth_edge.imaging.preprocess import Frame


class Sample(NamedTuple):
    """One picture and its depth."""

    name: str
    frame: Frame
    """uint8 RGB `[H, W, 3]`."""
    depth_m: npt.NDArray[np.float32]
    """float32 `[H, W]`, metres; 0 where nothing was measured."""


class DepthDataset(ABC):
    """Pictures with measured depth in a fixed order, each read when it is asked for.

    Instances travel to the processes that load data: they hold no open file.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            InputError: its files cannot be used.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What a sample is called, without reading it; unique in the data set."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that is read, in order."""

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def fingerprint(self) -> str:
        """SHA-256 over the names and sizes of the files: changes with the data, not with where it is."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self.name(index)}\n".encode())
        for path in self.files():
            size = path.stat().st_size if path.is_file() else -1
            digest.update(f"{path.name} {size}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class FilePairs(DepthDataset):
    """Pictures and 16-bit depth PNGs, a file each."""

    pairs: tuple[tuple[Path, Path], ...]
    """Picture and depth."""
    units_per_metre: float = 1000.0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        picture, depth = self.pairs[index]
        frame, depth_m = read_picture(picture), read_depth_png(depth, self.units_per_metre)
        if frame.shape[:2] != depth_m.shape:
            raise InputError(
                f"{picture} and {depth} differ in size.",
                f"The picture is {frame.shape[:2]}, its depth {depth_m.shape} (rows, columns).",
                "Pair each picture with depth registered to it.",
            )
        return Sample(self.name(index), frame, depth_m)

    def name(self, index: int) -> str:
        """The picture's path below the folder that all pictures share, without its suffix."""
        return self.pairs[index][0].relative_to(self._common).with_suffix("").as_posix()

    def files(self) -> list[Path]:
        return [path for pair in self.pairs for path in pair]

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{super().fingerprint()} {self.units_per_metre}".encode()).hexdigest()

    @cached_property
    def _common(self) -> Path:
        folders = {picture.parent for picture, _ in self.pairs}
        common = min(folders, key=lambda folder: len(folder.parts))
        while not all(folder.is_relative_to(common) for folder in folders):
            common = common.parent
        return common


@dataclass(frozen=True, kw_only=True)
class InMemory(DepthDataset):
    """Samples that come from no files."""

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
    """A data set seen through a function, such as a crop."""

    of: DepthDataset
    function: Callable[[Sample], Sample]
    """Importable by name, so that it travels to other processes."""

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> Sample:
        return self.function(self.of[index])

    def name(self, index: int) -> str:
        return self.of.name(index)

    def files(self) -> list[Path]:
        return self.of.files()

    def fingerprint(self) -> str:
        seen_as = f"{self.of.fingerprint()} {self.function.__qualname__}"
        return hashlib.sha256(seen_as.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Selected(DepthDataset):
    """Some samples of a data set."""

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
