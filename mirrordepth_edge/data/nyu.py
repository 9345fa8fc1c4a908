"""NYU Depth v2 as it was published: one MATLAB file of 1,449 labelled pairs, and its official split.

`nyu_depth_v2_labeled.mat` is HDF5 (MATLAB 7.3): `images` uint8 `[N, 3, W, H]`, `depths` (in-filled)
and `rawDepths` (as measured, registered) float32 metres `[N, W, H]`. The split, `splits.mat`, counts
from one: 795 training and 654 test pictures. The other forms are lists (`data.listed`) and HDF5 files
(`data.packed`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.data.hdf5 import read_hdf5
from mirrordepth_edge.data.sample import DepthDataset, Sample
from mirrordepth_edge.errors import InputError, missing_package
from mirrordepth_edge.support.files import existing_file

LABELLED = "nyu_depth_v2_labeled.mat"
SIZE_HW = (480, 640)
INSIDE = slice(45, 472), slice(43, 608)
"""Rows and columns to which BTS crops training pictures (arXiv 1907.10326; its box is 43, 45, 608, 472)."""
SPLIT_KEYS = {"train": "trainNdxs", "test": "testNdxs"}


@dataclass(frozen=True, kw_only=True)
class NyuLabelled(DepthDataset):
    """One part of the official split of the labelled set.

    Args:
        file: `nyu_depth_v2_labeled.mat`.
        splits: `splits.mat`, beside it by default.
        infilled: read the in-filled `depths` instead of `rawDepths`. The field evaluates on raw
            depth; figures on in-filled depth do not compare.
    """

    file: Path
    part: Literal["train", "test"]
    splits: Path | None = None
    infilled: bool = False

    @property
    def _splits(self) -> Path:
        return self.splits or self.file.with_name("splits.mat")

    def indices(self) -> list[int]:
        """Positions in the file, counted from zero.

        Raises:
            InputError: the split is not there or is another file.
        """
        path = existing_file(self._splits, "official split")
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise missing_package("SciPy", "Reading NYU's splits.mat", "train") from error
        try:
            return [int(index) - 1 for index in loadmat(path)[SPLIT_KEYS[self.part]].ravel()]
        except (ValueError, KeyError, NotImplementedError) as error:  # SciPy's word for a MATLAB 7.3 file
            raise InputError(
                f"{path} is not NYU's official split.",
                f"It holds no {SPLIT_KEYS[self.part]} ({error}).",
                "Download splits.mat from the data set's page and put it beside the .mat file.",
            ) from error

    @cached_property
    def _indices(self) -> list[int]:
        return self.indices()

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return f"{self._indices[index]:04d}"

    def files(self) -> list[Path]:
        return [self.file, self._splits]

    def __getitem__(self, index: int) -> Sample:
        existing_file(self.file, "NYU Depth v2 file")
        picture, depth_m = read_hdf5(
            self.file,
            ("images", "depths" if self.infilled else "rawDepths"),
            self._indices[index],
            name=str(self.file),
            what="labelled NYU Depth v2 file",
            cure=f"Download {LABELLED} again (2.8 GB).",
        )
        return Sample(self.name(index), _upright(picture), _upright(depth_m))

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{super().fingerprint()} {self.part} {self.infilled}".encode()).hexdigest()


def without_border(sample: Sample) -> Sample:
    """The sample without depth near the border, for training.

    Registration of depth to colour left a white border in the pictures. BTS and its successors crop it
    away; here the whole view is kept, so that a network sees what it will see when used, but nothing
    is learnt from depth there. A picture that is not 640x480 is left alone.
    """
    if sample.depth_m.shape != SIZE_HW:
        return sample
    depth_m = np.zeros_like(sample.depth_m)
    depth_m[INSIDE] = sample.depth_m[INSIDE]
    return sample._replace(depth_m=depth_m)


def _upright(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """MATLAB's column order to rows first: `[3, W, H]` to `[H, W, 3]`, `[W, H]` to `[H, W]`."""
    return np.ascontiguousarray(stored.T)
