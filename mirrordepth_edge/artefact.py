"""A model file and what is stored beside it: its manifest, and the reference depth that PyTorch computed in FP32.

`model.onnx.reference.npz` travels with `model.onnx`, and an engine gets a copy of its ONNX file's. With it, a device
can check what it runs without PyTorch and without the ONNX file.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.manifest import CheckpointInfo, Manifest, manifest_path, read_checkpoint_info, read_manifest
from mirrordepth_edge.support.files import atomic_write, existing_file, sha256_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from mirrordepth_edge.imaging.postprocess import DepthMap

MODELS_DIR = Path(__file__).parent / "models"
NANO_CHECKPOINT = MODELS_DIR / "nano.safetensors"
NANO_ONNX = {"fp32": MODELS_DIR / "nano.onnx", "fp16": MODELS_DIR / "nano.fp16.onnx"}
SHIPPED = {"nano": NANO_ONNX["fp32"], "nano.fp16": NANO_ONNX["fp16"]}
"""Paths of the models that can be referred to by name."""

CHECKPOINT_SUFFIX: Final = ".safetensors"
ONNX_SUFFIX: Final = ".onnx"
PLAN_SUFFIXES: Final = (".plan", ".engine")

MAX_REFERENCE_FRAMES: Final = 3
"""Number of export frames whose depth is stored at most."""

Kind = Literal["onnx", "plan", "checkpoint"]


@dataclass(frozen=True)
class Reference:
    """Network inputs and the depth that PyTorch computed for them in FP32."""

    images: npt.NDArray[Any]
    """`[N, ...]`, each as the network takes it."""
    depth_m: DepthMap
    """float32 `[N, h, w]`, metres."""

    def batch(self, first: int, size: int) -> tuple[npt.NDArray[Any], DepthMap]:
        """Return `size` inputs and their depths, starting at `first` and wrapping around."""
        # Here and below NumPy is imported late, because `mde --help` names models without it.
        import numpy as np

        indices = (first + np.arange(size)) % len(self.images)
        return self.images[indices], self.depth_m[indices]


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A model file, opened and hashed once."""

    path: Path
    kind: Kind
    sidecar: Manifest | None
    """The file's manifest; None for a checkpoint, which describes itself, and for a trusted plan without one."""

    @classmethod
    def open(cls, model: str | Path, *, trust: bool = False) -> Artefact:
        """Read a model's manifest and check that the file has the SHA-256 that it states.

        A checkpoint has no manifest; it is verified when its weights are loaded.

        Args:
            model: `nano` or `nano.fp16`, which ship with the package, or the path of a `.safetensors`, `.onnx`,
                `.plan` or `.engine` file.
            trust: accept a plan without a manifest, such as one that trtexec built.

        Raises:
            InputError: the file is missing, has an unknown suffix, has no manifest, or its hash differs.
        """
        path = model_path(model)
        kind = kind_of(path)
        if kind == "checkpoint" or (kind == "plan" and trust and not manifest_path(path).is_file()):
            existing_file(path, "checkpoint" if kind == "checkpoint" else "model")
            return cls(path=path, kind=kind, sidecar=None)
        return cls(path=path, kind=kind, sidecar=read_manifest(path))

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def manifest(self) -> Manifest:
        """The manifest of an ONNX file or a plan.

        Raises:
            InputError: the artefact has none; see `sidecar`.
        """
        if self.sidecar is None:
            raise InputError(
                f"{self.path} has no manifest.",
                "Only ONNX files and engines that mde export and mde build wrote have one.",
                f"Export it: mde export {self.path}" if self.kind == "checkpoint" else "Build it with mde build.",
            )
        return self.sidecar

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hex."""
        # `open` has compared the manifest's value with the file's, so it need not be hashed again.
        return sha256_of(self.path) if self.sidecar is None else self.sidecar.artefact_sha256

    @cached_property
    def reference(self) -> Reference | None:
        """Depth that PyTorch computed at export, to compare with; None if it was not stored.

        Raises:
            InputError: the stored file is damaged.
        """
        return read_reference(self.path)

    @cached_property
    def checkpoint_info(self) -> CheckpointInfo:
        """The header of a checkpoint.

        Raises:
            InputError: the file is not a checkpoint of this package.
        """
        return read_checkpoint_info(self.path)


def kind_of(path: Path) -> Kind:
    """The kind of a model file, by its suffix.

    Raises:
        InputError: the suffix is unknown.
    """
    if path.suffix == CHECKPOINT_SUFFIX:
        return "checkpoint"
    if path.suffix == ONNX_SUFFIX:
        return "onnx"
    if path.suffix in PLAN_SUFFIXES:
        return "plan"
    existing_file(path, "model")
    raise InputError(
        f"{path} is not a model.",
        "A model is a checkpoint (.safetensors), an ONNX file (.onnx) or an engine (.plan, .engine).",
        "Export one with mde export.",
    )


def shipped_name(sha256: str) -> str | None:
    """Return the name of the shipped ONNX file with this SHA-256, or None. Only manifests are read."""
    for name, path in SHIPPED.items():
        try:
            if read_manifest(path, verify=False).artefact_sha256 == sha256:
                return name
        except InputError:  # an incomplete installation must not hide the message that asks for this name
            continue
    return None


def model_path(model: str | Path) -> Path:
    """Return the path of a model: of a shipped one for `nano` and `nano.fp16`, else the path itself."""
    return SHIPPED.get(str(model), Path(model))


def reference_path(artefact: Path) -> Path:
    """Return the path of an artefact's reference: `model.onnx` has `model.onnx.reference.npz`."""
    return artefact.with_name(artefact.name + ".reference.npz")


def write_reference(artefact: Path, reference: Reference) -> None:
    """Write the reference of an artefact."""
    import numpy as np

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
    import numpy as np

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
