"""What `mde export` was asked for, as values that need no heavy import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mirrordepth_edge.config import CalibrationMethod, DataConfig, InputKind, Precision, SizeHW, SizeRange
from mirrordepth_edge.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model to export, and its input."""

    model: str
    """A checkpoint, an ONNX file, or the name of a shipped model."""
    untrained: str | None = None
    """Preset to export with random weights in place of `model`."""
    clip_weights: Path | None = None
    frames: Path | None = None
    """Image or folder for the parity check and FP16 ranges; the package's own images if None."""
    size_hw: SizeHW | None = None
    """Network input size; the model's own if None."""
    sizes: SizeRange | None = None
    """Range of input sizes, for dynamic shapes."""
    io: InputKind = "uint8"


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """Options of INT8: calibration, the accuracy gate, and the sweep."""

    method: CalibrationMethod
    max_loss: str
    """Maximum growth of AbsRel, as typed, such as `1%`."""
    force: bool
    data: DataConfig | None
    """Data for the gate; None compares with FP32 on the calibration set."""
    gate_frames: int
    sweep: bool
    pick: int | None
    """Point of the sweep to write."""

    @property
    def sweeps(self) -> bool:
        return self.sweep or self.pick is not None


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """One run of `mde export`."""

    source: Source
    output: Path
    precision: Precision | None
    """None: the default of the target."""
    target: str | None
    calib: str | None
    int8: Int8Options
    triton: Path | None
    """Model repository of NVIDIA Triton to write to."""


def parse_precision(fp32: bool, fp16: bool, int8: bool) -> Precision | None:
    """Return the precision of the flags, None without one.

    Raises:
        OptionError: More than one flag is set.
    """
    if fp32 + fp16 + int8 > 1:
        why = "A file has one precision; --sweep and --pick imply --int8."
        raise OptionError("--fp32, --fp16 and --int8 cannot be combined.", why, "Give one of them.")
    return "fp32" if fp32 else "fp16" if fp16 else "int8" if int8 else None
