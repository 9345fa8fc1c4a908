"""Arrays out of HDF5, whatever file they lie in."""

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
    """The arrays under `keys`, or one entry of each.

    The file is opened for each call: an open one would not survive the way to another process.

    Args:
        source: the file, or its bytes as a stream.
        index: position along the first axis; `...` for all of it.
        name, what, cure: of the file, for the message: which, what it should be, what to do.

    Raises:
        InputError: it is no HDF5, or holds something else.
        MissingError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise missing_package("h5py", f"Reading {name}", "train") from error
    try:
        with h5py.File(source, "r") as data:
            return [np.asarray(data[key][index]) for key in keys]
    except (OSError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:  # all are h5py's words for it
        raise InputError(f"{name} is no {what}.", f"HDF5 says: {error}.", cure) from error
