"""The models that ship with the package."""

from __future__ import annotations

from pathlib import Path

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.manifest import read_manifest

MODELS_DIR = Path(__file__).parent / "models"
NANO_CHECKPOINT = MODELS_DIR / "nano.safetensors"
NANO_ONNX = {"fp32": MODELS_DIR / "nano.onnx", "fp16": MODELS_DIR / "nano.fp16.onnx"}
SHIPPED = {"nano": NANO_ONNX["fp32"], "nano.fp16": NANO_ONNX["fp16"]}
"""Models that are named rather than pathed."""


def shipped_name(sha256: str) -> str | None:
    """By which name the ONNX file with this SHA-256 ships; None where it does not. Only manifests are read."""
    for name, path in SHIPPED.items():
        try:
            if read_manifest(path, verify=False).artefact_sha256 == sha256:
                return name
        except InputError:  # an installation that lost it can still say what it knows
            continue
    return None


def model_path(model: str | Path) -> Path:
    """The file behind a model's name: `nano` and `nano.fp16` are ONNX files that ship with the package."""
    return SHIPPED.get(str(model), Path(model))
