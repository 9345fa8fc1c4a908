"""NYU Depth v2 as it was published: one MATLAB file of 1,449 labelled pairs, and its official split.

`nyu_depth_v2_labeled.mat` is HDF5 (MATLAB 7.3): `images` uint8 `[N, 3, W, H]`, `depths` (in-filled)
and `rawDepths` (as measured, registered) float32 metres `[N, W, H]`. The split, `splits.mat`, counts
from one: 795 training and 654 test pictures. Other forms are lists (`data.listed`) or folders.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mirrordepth_edge.data.sample import DepthDataset, Sample
from mirrordepth_edge.errors import InputError, missing_package
from mirrordepth_edge.files import existing_file

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

    def indices(self) -> list[int]:
        """Positions in the file, counted from zero.

        Raises:
            InputError: the split is not there or is another file.
        """
        path = self.splits or self.file.with_name("splits.mat")
        existing_file(path, "official split")
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
        return [self.file]

    def __getitem__(self, index: int) -> Sample:
        existing_file(self.file, "NYU Depth v2 file")
        try:
            import h5py
        except ImportError as error:
            raise missing_package("h5py", "Reading NYU's .mat file", "train") from error
        position = self._indices[index]
        try:
            # Opened for each sample: a handle would not survive the way to another process.
            with h5py.File(self.file, "r") as data:
                picture = _upright(data["images"][position])
                depth_m = _upright(data["depths" if self.infilled else "rawDepths"][position])
        except (OSError, KeyError) as error:
            raise InputError(
                f"{self.file} is no labelled NYU Depth v2 file.",
                f"HDF5 says: {error}.",
                "Download nyu_depth_v2_labeled.mat again (2.8 GB).",
            ) from error
        return Sample(self.name(index), picture, depth_m)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{super().fingerprint()} {self.part} {self.infilled}".encode()).hexdigest()


def _upright(stored: Any) -> Any:
    """MATLAB's column order to rows first: `[3, W, H]` to `[H, W, 3]`, `[W, H]` to `[H, W]`."""
    return np.ascontiguousarray(np.asarray(stored).T)
