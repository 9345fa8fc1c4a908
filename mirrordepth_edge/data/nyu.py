"""NYU Depth v2 as published: one MATLAB file of 1,449 labelled RGB-D pairs, with the official split.

`nyu_depth_v2_labeled.mat` is HDF5 (MATLAB 7.3): `images` uint8 `[N, 3, W, H]`, `depths` (in-filled) and
`rawDepths` (as measured, registered) float32 `[N, W, H]`, metres. `splits.mat` has 1-based indices of 795
training and 654 test images. Other distributions: lists of files (`data.listed`), HDF5 files (`data.packed`).
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
"""Rows and columns to which BTS crops training images (arXiv 1907.10326; its box is 43, 45, 608, 472)."""
SPLIT_KEYS = {"train": "trainNdxs", "test": "testNdxs"}


@dataclass(frozen=True, kw_only=True)
class NyuLabelled(DepthDataset):
    """One part of the official split of the labelled set.

    Args:
        file: `nyu_depth_v2_labeled.mat`, with `splits.mat` beside it.
        part: `train` or `test`.
    """

    file: Path
    part: Literal["train", "test"]

    @property
    def _splits(self) -> Path:
        return self.file.with_name("splits.mat")

    @cached_property
    def _indices(self) -> list[int]:
        """Indices into the file, from 0.

        Raises:
            InputError: the split is missing or is another file.
        """
        path = existing_file(self._splits, "official split")
        try:
            from scipy.io import loadmat
        except ImportError as error:
            raise missing_package("SciPy", "Reading NYU's splits.mat", "train") from error
        try:
            return [int(index) - 1 for index in loadmat(path)[SPLIT_KEYS[self.part]].ravel()]
        except (ValueError, KeyError, NotImplementedError) as error:  # the last is SciPy's for a MATLAB 7.3 file
            raise InputError(
                f"{path} is not NYU's official split.",
                f"It has no {SPLIT_KEYS[self.part]} ({error}).",
                "Download splits.mat from the data set's page and put it beside the .mat file.",
            ) from error

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return f"{self._indices[index]:04d}"

    def files(self) -> list[Path]:
        return [self.file, self._splits]

    def __getitem__(self, index: int) -> Sample:
        image, depth_m = read_hdf5(
            self.file,
            ("images", "rawDepths"),  # published results are on raw depth
            self._indices[index],
            name=str(self.file),
            what="labelled NYU Depth v2 file",
            cure=f"Download {LABELLED} again (2.8 GB).",
        )
        return Sample(self.name(index), _upright(image), _upright(depth_m))

    def fingerprint(self) -> str:
        # False: not in-filled. Runs and feature caches of earlier versions are recognised by this text.
        return hashlib.sha256(f"{super().fingerprint()} {self.part} False".encode()).hexdigest()


def without_border(sample: Sample) -> Sample:
    """Remove depth near the border of a training sample.

    Registration left a white border in the images. BTS and its successors crop it. Here the whole image is
    kept, as at inference, and only its depth near the border is ignored. Samples that are not 640x480 are
    returned unchanged.
    """
    # This function's name is part of the data set's fingerprint (`sample.Mapped`).
    if sample.depth_m.shape != SIZE_HW:
        return sample
    depth_m = np.zeros_like(sample.depth_m)
    depth_m[INSIDE] = sample.depth_m[INSIDE]
    return sample._replace(depth_m=depth_m)


def _upright(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert MATLAB's column-major order: `[3, W, H]` to `[H, W, 3]`, `[W, H]` to `[H, W]`."""
    return np.ascontiguousarray(stored.T)
