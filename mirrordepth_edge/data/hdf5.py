"""Reading arrays from HDF5 files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError, missing_package


def read_hdf5(
    source: Path | BinaryIO, keys: Sequence[str], index: int | EllipsisType, *, name: str, what: str, cure: str
) -> list[npt.NDArray[Any]]:
    """Read arrays, or one entry of each.

    Args:
        source: the file, or its bytes as a stream.
        keys: names of the arrays.
        index: index along the first axis; `...` for the whole array.
        name, what, cure: for the error message: the file, what was expected, what to do.

    Raises:
        InputError: the file is not HDF5 or has other content.
        MissingError: h5py is not installed.
    """
    # Opened in each call: an open file cannot be sent to a data loader process.
    try:
        import h5py
    except ImportError as error:
        raise missing_package("h5py", f"Reading {name}", "train") from error
    try:
        with h5py.File(source, "r") as data:
            return [np.asarray(data[key][index]) for key in keys]
    except (OSError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:  # h5py raises any of these
        raise InputError(f"{name} is not a {what}.", f"HDF5: {error}.", cure) from error
