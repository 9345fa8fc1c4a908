"""A model file and what is known about it; the models that ship with the package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.manifest import CheckpointInfo, Manifest, manifest_path, read_checkpoint_info, read_manifest
from mirrordepth_edge.support.files import existing_file, sha256_of

if TYPE_CHECKING:
    from mirrordepth_edge.reference import Reference

MODELS_DIR = Path(__file__).parent / "models"
NANO_CHECKPOINT = MODELS_DIR / "nano.safetensors"
NANO_ONNX = {"fp32": MODELS_DIR / "nano.onnx", "fp16": MODELS_DIR / "nano.fp16.onnx"}
SHIPPED = {"nano": NANO_ONNX["fp32"], "nano.fp16": NANO_ONNX["fp16"]}
"""Paths of the models that can be referred to by name."""

CHECKPOINT_SUFFIX: Final = ".safetensors"
ONNX_SUFFIX: Final = ".onnx"
PLAN_SUFFIXES: Final = (".plan", ".engine")

Kind = Literal["onnx", "plan", "checkpoint"]


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
        from mirrordepth_edge.reference import read_reference  # imports NumPy, which naming a model does not need

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
