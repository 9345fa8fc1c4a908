"""Reference depth of an exported model: what PyTorch computes in FP32 for a few frames, stored beside the file.

`model.onnx.reference.npz` travels with `model.onnx`, and an engine gets a copy of its ONNX file's. With it, a device
can check what it runs without PyTorch and without the ONNX file.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.support.files import atomic_write

MAX_FRAMES = 3
"""Number of export frames that are stored at most."""


@dataclass(frozen=True)
class Reference:
    """Network inputs and their depth."""

    images: npt.NDArray[Any]
    """`[N, ...]`, each as the network takes it."""
    depth_m: DepthMap
    """float32 `[N, h, w]`, metres."""

    def batch(self, first: int, size: int) -> tuple[npt.NDArray[Any], DepthMap]:
        """Return `size` inputs and their depths, starting at `first` and wrapping around."""
        indices = (first + np.arange(size)) % len(self.images)
        return self.images[indices], self.depth_m[indices]


def reference_path(artefact: Path) -> Path:
    """Return the path of an artefact's reference: `model.onnx` has `model.onnx.reference.npz`."""
    return artefact.with_name(artefact.name + ".reference.npz")


def write_reference(artefact: Path, reference: Reference) -> None:
    """Write the reference of an artefact."""
    with atomic_write(reference_path(artefact)) as temporary:
        np.savez_compressed(temporary, images=reference.images, depth_m=reference.depth_m)


def copy_reference(source: Path, artefact: Path) -> None:
    """Copy the reference of `source` to an artefact that was made from it; do nothing if there is none."""
    if reference_path(source).is_file():
        with atomic_write(reference_path(artefact)) as temporary:
            shutil.copyfile(reference_path(source), temporary)


def read_reference(artefact: Path) -> Reference | None:
    """Read the reference of an artefact; None if there is none.

    Raises:
        InputError: the file is damaged.
    """
    path = reference_path(artefact)
    if not path.is_file():
        return None
    try:
        # Opened here because np.load leaves the file open if it is not an archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            reference = Reference(stored["images"], stored["depth_m"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error
    if not 0 < len(reference.images) == len(reference.depth_m) or not (reference.depth_m > 0).all():
        raise _damaged(path, "It must hold a positive depth for every frame.")
    return reference


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is damaged.", why, "Copy it again with its model, or delete it to skip the comparison with PyTorch."
    )
