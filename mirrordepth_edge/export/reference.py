"""What an artefact's depth has to be: PyTorch's in FP32 on a few frames, stored beside the file when it is exported.

`model.onnx.reference.npz` travels with `model.onnx`, and a plan takes its ONNX file's along. So every device can
find out for itself, without PyTorch and without the ONNX file, whether what it runs is fast and right or only fast.
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

MOST_FRAMES = 3
"""Of the pictures an export is checked on, so many are stored."""


@dataclass(frozen=True)
class Reference:
    """Network inputs and their depth."""

    images: npt.NDArray[Any]
    """`[N, ...]`, each as the network takes it."""
    depth_m: DepthMap
    """float32 `[N, h, w]`, metres."""

    def batch(self, first: int, size: int) -> tuple[npt.NDArray[Any], DepthMap]:
        """`size` inputs and depths from the `first` on; after the last one it begins anew."""
        places = (first + np.arange(size)) % len(self.images)
        return self.images[places], self.depth_m[places]


def reference_path(artefact: Path) -> Path:
    """The file's name: `model.onnx` has `model.onnx.reference.npz`."""
    return artefact.with_name(artefact.name + ".reference.npz")


def write_reference(artefact: Path, reference: Reference) -> None:
    """Store what an artefact's depth has to be, whole."""
    with atomic_write(reference_path(artefact)) as temporary:
        np.savez_compressed(temporary, images=reference.images, depth_m=reference.depth_m)


def copy_reference(source: Path, artefact: Path) -> None:
    """Let an artefact that was made from `source` take its reference along; none where it has none."""
    if reference_path(source).is_file():
        with atomic_write(reference_path(artefact)) as temporary:
            shutil.copyfile(reference_path(source), temporary)


def read_reference(artefact: Path) -> Reference | None:
    """What an artefact's depth has to be; None where that was not stored.

    Raises:
        InputError: the file is damaged.
    """
    path = reference_path(artefact)
    if not path.is_file():
        return None
    try:
        # Opened here: NumPy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            reference = Reference(stored["images"], stored["depth_m"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error)) from error
    if not 0 < len(reference.images) == len(reference.depth_m) or not (reference.depth_m > 0).all():
        raise _damaged(path, "It does not hold a positive depth for each of its frames.")
    return reference


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is damaged.", why, "Copy it again with its artefact, or delete it to go without this check."
    )
