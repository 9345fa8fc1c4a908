"""What an artefact is, beside it in `NAME.manifest.json`, and in a checkpoint's own header.

Manifests chain by SHA-256: checkpoint, ONNX, plan. They are sidecars, never glued to the artefact,
so that trtexec, Netron, Triton and Polygraphy read the files unchanged.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mirrordepth_edge.config import (
    BatchHW,
    BuildConfig,
    CalibrationMethod,
    ExportConfig,
    InputKind,
    ModelConfig,
    Precision,
    PreprocessConfig,
    QuantisationScheme,
    SizeHW,
    SizeRange,
    Strict,
)
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.support.files import atomic_write, existing_file, read_json, sha256_of
from mirrordepth_edge.support.schema import read_strict, upgraded

if TYPE_CHECKING:
    pass

MANIFEST_VERSION: Final = 2
RENAMED_IN_2: Final = {"given_back": "fp_fallback", "smallest": "min", "usual": "opt", "largest": "max"}
"""New keys of a manifest by those of schema version 1."""
CHECKPOINT_VERSION: Final = 1
CHECKPOINT_KEY = "mirrordepth"
"""Key of the model description in a checkpoint's safetensors metadata."""


DIMENSIONS: Final = {"N": "batch", "H": "height", "W": "width"}
"""What open lengths are called in an ONNX graph, by the letter of the layout."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec(Strict):
    """One input or output of a network."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int, ...]
    """-1 where a length is open."""
    layout: str
    """Such as `NHWC`."""
    range: str
    """Such as `0..255`."""
    unit: str
    """Such as `metres`."""

    def at(self, size: BatchHW) -> TensorSpec:
        """The same for so many frames of that height and width."""
        lengths = dict(zip("NHW", size, strict=True))
        shape = tuple(lengths.get(letter, n) for letter, n in zip(self.layout, self.shape, strict=True))
        return replace(self, shape=shape)

    @property
    def io(self) -> InputKind:
        """What an input takes."""
        return "uint8" if self.dtype == "uint8" else "float"

    @property
    def size(self) -> BatchHW:
        """Frames, height and width."""
        frames, height, width = (self.shape[self.layout.index(letter)] for letter in "NHW")
        return frames, height, width

    def open(self, letters: str) -> TensorSpec:
        """The same with some lengths open, by the letters of the layout."""
        shape = tuple(-1 if letter in letters else n for letter, n in zip(self.layout, self.shape, strict=True))
        return replace(self, shape=shape)


@dataclass(frozen=True, kw_only=True)
class Parity(Strict):
    """How far an artefact's depth is from what it was made from: ONNX from PyTorch, a plan from its
    ONNX. A plan that could not be run where it was built carries its ONNX file's figures."""

    runner: str
    """What ran the artefact, with its version."""
    frames: int
    max_relative: float
    """Largest |artefact - reference| / reference over all pixels of all frames."""
    mean_relative: float
    block_relative: float | None = None
    """Largest mean of that over 8x8 pixels; None where it was not measured."""
    limit: str
    """The gate that was held, in words."""


@dataclass(frozen=True, kw_only=True)
class EngineInfo(Strict):
    """What a plan was built by and for."""

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    compute_capabilities: tuple[str, ...]
    """GPUs the plan runs on, such as "8.9"."""
    build_seconds: float
    timing: dict[str, float] | None = None
    """Seconds of the parts of `build_seconds`: `parse` and `build`."""
    peak_memory_mb: float | None = None
    """Most main memory that the builder had resident at once, in 1e6 bytes; what it held on the GPU is not in it."""
    system: str | None = None
    """Where it was built, such as "linux-x86_64"; a plan of TensorRT runs on no other system."""
    gpu: str | None = None
    """The GPU it was built on; None where it was built for others."""
    board: str | None = None
    """The Jetson it was built on: CUDA calls the GPU of every Orin module "Orin"; None elsewhere."""
    driver: str | None = None
    """NVIDIA's driver there, such as "560.35.05, CUDA 12.6"; None without one."""
    options: BuildConfig | None = None


@dataclass(frozen=True, kw_only=True)
class DepthFigures(Strict):
    """Depth errors of one file."""

    abs_rel: float
    """mean |p - d| / d; no unit."""
    delta1: float
    """Share of pixels with max(p/d, d/p) < 1.25."""
    boundary_f1: float | None
    """Of depth steps between pixels 16 apart (`evaluation.WIDE_PX`), 0 to 1; None where `d` has none."""


@dataclass(frozen=True, kw_only=True)
class Accuracy(Strict):
    """What quantising cost, on frames that both the quantised and the FP32 file saw."""

    data: str
    """Which frames."""
    frames: int
    figures: DepthFigures
    """Against measured depth; against the FP32 file's depth where there is none."""
    fp32: DepthFigures | None
    """The FP32 file's against measured depth; None where there is none."""
    mean_relative: float
    """mean |p - p32| / p32 over all pixels, p32 being the FP32 file's depth."""
    max_relative: float
    """The worst pixel's."""
    limit: float
    """What `loss` was held to."""

    @property
    def loss(self) -> float:
        """By what share AbsRel grew; on frames without measured depth, AbsRel against FP32 itself."""
        return self.figures.abs_rel if self.fp32 is None else self.figures.abs_rel / self.fp32.abs_rel - 1

    @property
    def delta1_loss(self) -> float:
        """By how much delta1 fell, 0 to 1; on frames without measured depth, from FP32's own, which is 1."""
        return (1.0 if self.fp32 is None else self.fp32.delta1) - self.figures.delta1

    @property
    def holds(self) -> bool:
        """Both: a bias of all depth may cancel FP32's own error in AbsRel, where it harms delta1."""
        return self.loss <= self.limit and self.delta1_loss <= self.limit

    def __str__(self) -> str:
        own = self.figures.abs_rel
        compared = (
            f"AbsRel {own:.2%} against FP32's depth (gate: at most {self.limit:.2%})"
            if self.fp32 is None
            else f"AbsRel {own:.4f} against {self.fp32.abs_rel:.4f} in FP32, {self.loss:+.2%} "
            f"(gate: at most {self.limit:+.2%})"
        )
        fell = f", delta1 {-self.delta1_loss:+.2%}" if self.fp32 is not None else ""
        return f"{compared}{fell}, on {self.frames} frames of {self.data}"


@dataclass(frozen=True, kw_only=True)
class Quantisation(Strict):
    """What of an artefact multiplies in INT8, on which evidence."""

    scheme: QuantisationScheme
    method: CalibrationMethod
    calibration: str
    """Name of the calibration set."""
    calibration_sha256: str
    calibration_frames: int
    int8_nodes: tuple[str, ...]
    fp_fallback: tuple[str, ...]
    """Groups of layers that went back to floating point so that the gate holds, the most harmful first."""
    accuracy: Accuracy | None
    """None while it is being judged."""
    forced: bool = False
    """True where the gate failed and the file was written all the same."""
    domain_problem: str | None = None
    """Why the calibration set looks unlike any camera's pictures; None where it does not."""


@dataclass(frozen=True, kw_only=True)
class Manifest(Strict):
    """Description of one ONNX file or plan."""

    schema_version: Literal[2] = MANIFEST_VERSION
    kind: Literal["onnx", "plan"]
    artefact_sha256: str
    parent_sha256: str
    """Of the file this one was made from: the checkpoint for ONNX, the ONNX for a plan."""
    checkpoint_sha256: str
    clip_sha256: str
    """Of CLIP's weights, independent of their file format."""
    trained: bool
    """False for random mirror and decoder weights: fit to measure speed, not depth."""
    model: ModelConfig
    preprocess: PreprocessConfig
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: SizeRange | None = None
    """Sizes that the file takes, where it takes several; `model` and `preprocess` then have the usual one."""
    precision: Precision
    """Precision of the heavy layers; LayerNormalization and the metric head stay FP32."""
    quantisation: Quantisation | None = None
    """For INT8."""
    opset: int
    parity: Parity
    engine: EngineInfo | None = None
    tools: dict[str, str]
    """Versions of what made the artefact."""

    def at(self, size_hw: SizeHW | None = None, batch: int | None = None) -> Manifest:
        """What the artefact is at one of its sizes; itself where it has only one.

        Args:
            size_hw: of the network's input; the usual one where None.
            batch: frames of one inference; the fewest where None.

        Raises:
            OptionError: it does not take this size.
        """
        own = self.sizes
        if own is None and size_hw is None and batch is None:
            return self
        frames, *usual = self.inputs[0].size if own is None else (own.min[0], *own.opt[1:])
        height, width = size_hw or usual
        wanted = (batch or frames, height, width)
        if own is None and wanted == self.inputs[0].size:
            return self
        if own is None or not own.has(wanted) or any(n % self.model.size_multiple for n in wanted[1:]):
            raise _no_such_size(self, wanted)
        return replace(
            self,
            model=replace(self.model, size_hw=wanted[1:]),
            preprocess=replace(self.preprocess, size_hw=wanted[1:]),
            inputs=tuple(spec.at(wanted) for spec in self.inputs),
            outputs=tuple(spec.at(wanted) for spec in self.outputs),
            sizes=None,
        )


def _no_such_size(manifest: Manifest, wanted: BatchHW) -> OptionError:
    frames, height, width = wanted
    own = manifest.sizes
    what = f"This model cannot run {frames} frame{'' if frames == 1 else 's'} of {height}x{width} pixels at once."
    if own is None:
        (n, h, w), (batch, height, width) = manifest.inputs[0].size, wanted
        sizes = SizeRange(
            min=(min(n, batch), min(h, height), min(w, width)),
            opt=(n, h, w),
            max=(max(n, batch), max(h, height), max(w, width)),
        )
        cure = f"Export it for several: mde export --dynamic {sizes}"
        return OptionError(what, f"Its size is fixed: {n} of {h}x{w}.", cure)
    return OptionError(
        what,
        f"It takes {own.min[0]} to {own.max[0]} frames, {own.min[1]} to {own.max[1]} pixels high and "
        f"{own.min[2]} to {own.max[2]} wide, in steps of {manifest.model.size_multiple}.",
        f"--network-size {own.opt[1]}x{own.opt[2]}, or export it with a wider --dynamic",
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo(Strict):
    """Header of a checkpoint."""

    version: Literal[1] = CHECKPOINT_VERSION
    model: ModelConfig
    clip_sha256: str
    weights_sha256: str
    """Of mirror and decoder."""
    training: dict[str, Any] | None = None


def manifest_path(artefact: Path) -> Path:
    """The sidecar's name: `model.onnx` has `model.onnx.manifest.json`."""
    return artefact.with_name(artefact.name + ".manifest.json")


def write_artefact(path: Path, content: bytes, manifest: Manifest) -> None:
    """Write an artefact and its sidecar; both are complete before either takes its place."""
    with atomic_write(manifest_path(path)) as sidecar, atomic_write(path) as artefact:
        artefact.write_bytes(content)
        sidecar.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def read_manifest(artefact: Path, *, verify: bool = True) -> Manifest:
    """Read the sidecar of `artefact` and check that it belongs to it.

    Args:
        verify: compare the file's SHA-256 with the manifest's.

    Raises:
        InputError: either file is missing, the manifest is unreadable, or the hash differs.
    """
    sidecar = manifest_path(artefact)
    if sidecar.is_file() and not artefact.exists():
        raise InputError(
            f"{sidecar} describes {artefact.name}, which is not there.",
            "The manifest was copied or kept without its file.",
            f"Put {artefact.name} beside it, or make it again with mde export.",
        )
    existing_file(artefact, "model")
    if not sidecar.is_file():
        raise InputError(
            f"{artefact} has no manifest.",
            f"{sidecar.name} is not beside it; without it input size, units and origin are unknown.",
            "Copy the manifest along with the model, or make both again with mde export.",
        )
    data = read_json(sidecar, "manifest", "Copy it again, or make it again with mde export.")
    manifest = parse_manifest(data, str(sidecar), "Make it again with this version's mde export.")
    if verify and sha256_of(artefact) != manifest.artefact_sha256:
        raise InputError(
            f"{artefact} is not the file its manifest describes.",
            f"Its sha256 is not {manifest.artefact_sha256[:12]}…: it was changed or replaced.",
            "Copy the pair again, or make it again with mde export.",
        )
    return manifest


def parse_manifest(data: Any, source: str, cure: str) -> Manifest:
    """A manifest of this or of an older schema version from parsed JSON; arguments as of `read_strict`."""
    return read_strict(Manifest, upgraded(data, RENAMED_IN_2, range(1, 2), MANIFEST_VERSION), source, cure)


def read_checkpoint_info(path: Path) -> CheckpointInfo:
    """Read a checkpoint's header; PyTorch is not needed.

    Raises:
        InputError: the file is missing, no safetensors file, or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    existing_file(path, "checkpoint")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"{path} is no readable checkpoint.",
            f"It is truncated or no safetensors file ({error}).",
            "Copy or train it again.",
        ) from error
    if CHECKPOINT_KEY not in metadata:
        raise InputError(
            f"{path} is no mirrordepth-edge checkpoint.",
            f"Its safetensors metadata has no '{CHECKPOINT_KEY}' entry.",
            "Pass a file that mde train wrote.",
        )
    cure = "It was written by another version; train or download it again."
    try:
        data = json.loads(metadata[CHECKPOINT_KEY])
    except ValueError as error:
        raise InputError(f"The header of {path} is no readable JSON.", str(error), cure) from error
    return read_strict(CheckpointInfo, data, str(path), cure)


INPUT_NAME = "image"


OUTPUT_NAME = "depth"


DEPTH_LAYOUT = "NHW"


def input_spec(model: ModelConfig, config: ExportConfig) -> TensorSpec:
    """The exported network's input; open lengths are -1."""
    uint8 = config.io == "uint8"
    spec = TensorSpec(
        name=INPUT_NAME,
        dtype="uint8" if uint8 else "float32",
        shape=(config.batch, *model.size_hw, 3) if uint8 else (config.batch, 3, *model.size_hw),
        layout="NHWC" if uint8 else "NCHW",
        range="0..255" if uint8 else "(rgb/255 - mean) / std",
        unit="RGB" if uint8 else "normalised RGB",
    )
    return _opened(spec, config.sizes)


def output_spec(model: ModelConfig, config: ExportConfig) -> TensorSpec:
    """The exported network's output; open lengths are -1."""
    spec = TensorSpec(
        name=OUTPUT_NAME,
        dtype="float32",
        shape=(config.batch, *model.size_hw),
        layout=DEPTH_LAYOUT,
        range="> 0",
        unit="metres",
    )
    return _opened(spec, config.sizes)


def _opened(spec: TensorSpec, sizes: SizeRange | None) -> TensorSpec:
    """With the lengths open that the file leaves so."""
    return spec if sizes is None else spec.at(sizes.opt).open(sizes.dynamic_axes)
