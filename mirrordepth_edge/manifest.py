"""Manifests, which describe an ONNX file or an engine in `NAME.manifest.json`, and the header of checkpoints.

Manifests refer to their origin by SHA-256: plan to ONNX to checkpoint. They are separate files, so that trtexec,
Netron, Triton and Polygraphy can read the artefacts unchanged.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

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

MANIFEST_VERSION: Final = 2
RENAMED_IN_2: Final = {"given_back": "fp_fallback", "smallest": "min", "usual": "opt", "largest": "max"}
"""Keys that schema version 2 renamed, old to new."""
CHECKPOINT_VERSION: Final = 1
CHECKPOINT_KEY = "mirrordepth"
"""Key of the model description in a checkpoint's safetensors metadata."""
INPUT_NAME: Final = "image"
OUTPUT_NAME: Final = "depth"
DEPTH_LAYOUT: Final = "NHW"
DIMENSIONS: Final = {"N": "batch", "H": "height", "W": "width"}
"""Names of dynamic axes in an ONNX graph, by the letter of the layout."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec(Strict):
    """One input or output of a network."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int, ...]
    """-1 for a dynamic axis."""
    layout: str
    """Such as `NHWC`."""
    range: str
    """Such as `0..255`."""
    unit: str
    """Such as `metres`."""

    def at(self, size: BatchHW) -> TensorSpec:
        """Return the specification at a size."""
        lengths = dict(zip("NHW", size, strict=True))
        shape = tuple(lengths.get(letter, n) for letter, n in zip(self.layout, self.shape, strict=True))
        return replace(self, shape=shape)

    @property
    def io(self) -> InputKind:
        """Kind of an input."""
        return "uint8" if self.dtype == "uint8" else "float"

    @property
    def size(self) -> BatchHW:
        """Batch, height and width."""
        frames, height, width = (self.shape[self.layout.index(letter)] for letter in "NHW")
        return frames, height, width

    def with_dynamic_axes(self, letters: str) -> TensorSpec:
        """Return the specification with dynamic axes, given by the letters of the layout."""
        shape = tuple(-1 if letter in letters else n for letter, n in zip(self.layout, self.shape, strict=True))
        return replace(self, shape=shape)


@dataclass(frozen=True, kw_only=True)
class Parity(Strict):
    """Difference between an artefact's depth and that of its origin: ONNX from PyTorch, a plan from its ONNX file.

    A plan that could not be run where it was built has its ONNX file's figures.
    """

    backend: str | None = None
    """Name of the backend that ran the artefact, such as `onnxruntime`."""
    runner: str
    """The backend with its version and device, for reports."""
    frames: int
    max_relative: float
    """Largest |artefact - reference| / reference over all pixels of all frames."""
    mean_relative: float
    """Mean of the same over all pixels."""
    block_relative: float | None = None
    """Largest mean over a block of 8x8 pixels; None if it was not measured."""
    limit: str
    """The limit that was checked, for reports."""


@dataclass(frozen=True, kw_only=True)
class EngineInfo(Strict):
    """How and for what a plan was built."""

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    compute_capabilities: tuple[str, ...]
    """GPUs the plan runs on, such as "8.9"."""
    build_seconds: float
    timing: dict[str, float] | None = None
    """Seconds of the parts of `build_seconds`: `parse` and `build`."""
    peak_memory_mb: float | None = None
    """Peak resident main memory of the builder, in 1e6 bytes, without GPU memory."""
    system: str | None = None
    """Where it was built, such as "linux-x86_64"; a TensorRT plan runs on no other system."""
    gpu: str | None = None
    """The GPU it was built on; None if it was built for other GPUs."""
    board: str | None = None
    """The Jetson it was built on, since CUDA calls the GPU of every Orin module "Orin"; None elsewhere."""
    driver: str | None = None
    """NVIDIA's driver at build time, such as "560.35.05, CUDA 12.6"; None without one."""
    options: BuildConfig | None = None


@dataclass(frozen=True, kw_only=True)
class DepthFigures(Strict):
    """Depth errors of one file: predicted depth p against depth d."""

    abs_rel: float
    """Mean |p - d| / d."""
    delta1: float
    """Share of pixels with max(p/d, d/p) < 1.25."""
    boundary_f1: float | None
    """F1 of depth steps between pixels 16 apart (`evaluation.WIDE_PX`), 0 to 1; None if `d` has none."""


@dataclass(frozen=True, kw_only=True)
class Accuracy(Strict):
    """Accuracy of a quantised file compared with its FP32 file, on the same frames."""

    data: str
    """Description of the frames."""
    frames: int
    figures: DepthFigures
    """Against measured depth if there is any, otherwise against the FP32 file's depth."""
    fp32: DepthFigures | None
    """The FP32 file's figures against measured depth; None if there is none."""
    mean_relative: float
    """Mean |p - p32| / p32 over all pixels, where p32 is the FP32 file's depth."""
    max_relative: float
    """Largest |p - p32| / p32 of a pixel."""
    limit: float
    """Largest accepted `loss` and `delta1_loss`."""

    @property
    def loss(self) -> float:
        """Relative increase of AbsRel; without measured depth, AbsRel against FP32."""
        return self.figures.abs_rel if self.fp32 is None else self.figures.abs_rel / self.fp32.abs_rel - 1

    @property
    def delta1_loss(self) -> float:
        """Decrease of delta1, 0 to 1; without measured depth, FP32's delta1 is 1."""
        return (1.0 if self.fp32 is None else self.fp32.delta1) - self.figures.delta1

    @property
    def holds(self) -> bool:
        """Whether the accuracy gate holds."""
        # delta1 too, because a constant bias may cancel FP32's own error in AbsRel.
        return self.loss <= self.limit and self.delta1_loss <= self.limit

    def __str__(self) -> str:
        abs_rel, frames = self.figures.abs_rel, f"on {self.frames} frames of {self.data}"
        if self.fp32 is None:
            return f"AbsRel {abs_rel:.2%} against FP32's depth (gate: at most {self.limit:.2%}), {frames}"
        return (
            f"AbsRel {abs_rel:.4f} against {self.fp32.abs_rel:.4f} in FP32, {self.loss:+.2%} (gate: at most "
            f"{self.limit:+.2%}), delta1 {-self.delta1_loss:+.2%}, {frames}"
        )


@dataclass(frozen=True, kw_only=True)
class Quantisation(Strict):
    """Which layers of an artefact run in INT8, how they were calibrated, and the resulting accuracy."""

    scheme: QuantisationScheme
    method: CalibrationMethod
    calibration: str
    """Name of the calibration set."""
    calibration_sha256: str
    calibration_frames: int
    int8_nodes: tuple[str, ...]
    fp_fallback: tuple[str, ...]
    """Groups of layers that stay in floating point so that the accuracy gate holds, the most sensitive first."""
    accuracy: Accuracy | None
    """None for a candidate that was not evaluated yet."""
    forced: bool = False
    """True if the gate failed and the file was written anyway."""
    domain_problem: str | None = None
    """Why the calibration set does not look like camera images; None if it does."""


@dataclass(frozen=True, kw_only=True)
class Manifest(Strict):
    """Description of one ONNX file or plan."""

    schema_version: Literal[2] = MANIFEST_VERSION
    kind: Literal["onnx", "plan"]
    artefact_sha256: str
    parent_sha256: str
    """Of the origin: the checkpoint of an ONNX file, the ONNX file of a plan."""
    checkpoint_sha256: str
    clip_sha256: str
    """Of CLIP's weights, independent of their file format."""
    trained: bool
    """False for random mirror and decoder weights, which are only useful to measure speed."""
    model: ModelConfig
    preprocess: PreprocessConfig
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: SizeRange | None = None
    """Accepted sizes of a file with dynamic shapes; `model` and `preprocess` have the opt size. None: fixed shape."""
    precision: Precision
    """Precision of the layers with weights; LayerNormalization and the metric head stay FP32."""
    quantisation: Quantisation | None = None
    """Only for INT8."""
    opset: int
    parity: Parity
    engine: EngineInfo | None = None
    tools: dict[str, str]
    """Versions of the packages that made the artefact."""

    def at(self, size_hw: SizeHW | None = None, batch: int | None = None) -> Manifest:
        """Return the manifest at one size; the manifest itself if the shape is fixed.

        Args:
            size_hw: of the network's input; the opt size if None.
            batch: frames of one inference; the smallest accepted number if None.

        Raises:
            OptionError: the artefact does not accept this size.
        """
        sizes = self.sizes
        if sizes is None:
            fixed = self.inputs[0].size
            requested = (batch or fixed[0], *(size_hw or fixed[1:]))
            if requested != fixed:
                raise _size_error(self, requested)
            return self
        requested = (batch or sizes.min[0], *(size_hw or sizes.opt[1:]))
        if not sizes.has(requested) or any(side % self.model.size_multiple for side in requested[1:]):
            raise _size_error(self, requested)
        return replace(
            self,
            model=replace(self.model, size_hw=requested[1:]),
            preprocess=replace(self.preprocess, size_hw=requested[1:]),
            inputs=tuple(spec.at(requested) for spec in self.inputs),
            outputs=tuple(spec.at(requested) for spec in self.outputs),
            sizes=None,
        )


def _size_error(manifest: Manifest, requested: BatchHW) -> OptionError:
    frames, height, width = requested
    sizes = manifest.sizes
    what = f"This model cannot run {frames} frame{'' if frames == 1 else 's'} of {height}x{width} pixels at once."
    if sizes is None:
        fixed = manifest.inputs[0].size
        n, h, w = fixed
        wider = SizeRange(
            min=(min(n, frames), min(h, height), min(w, width)),
            opt=fixed,
            max=(max(n, frames), max(h, height), max(w, width)),
        )
        cure = f"Export it with dynamic shapes: mde export --dynamic {wider}"
        return OptionError(what, f"Its shape is fixed: {n} of {h}x{w}.", cure)
    return OptionError(
        what,
        f"It accepts {sizes.min[0]} to {sizes.max[0]} frames, heights of {sizes.min[1]} to {sizes.max[1]} and widths "
        f"of {sizes.min[2]} to {sizes.max[2]} pixels, in steps of {manifest.model.size_multiple}.",
        f"--network-size {sizes.opt[1]}x{sizes.opt[2]}, or export it with a wider --dynamic",
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
    """Return the path of an artefact's manifest: `model.onnx` has `model.onnx.manifest.json`."""
    return artefact.with_name(artefact.name + ".manifest.json")


def write_artefact(path: Path, content: bytes, manifest: Manifest) -> None:
    """Write an artefact and its manifest. Both are complete before either is moved into place."""
    with atomic_write(manifest_path(path)) as sidecar, atomic_write(path) as artefact:
        artefact.write_bytes(content)
        sidecar.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def read_manifest(artefact: Path, *, verify: bool = True) -> Manifest:
    """Read the manifest of `artefact` and check that it belongs to it.

    `Artefact.open` keeps the result; call this only to look at a manifest without opening the file.

    Args:
        verify: compare the file's SHA-256 with the manifest's.

    Raises:
        InputError: either file is missing, the manifest is unreadable, or the hash differs.
    """
    sidecar = manifest_path(artefact)
    if sidecar.is_file() and not artefact.exists():
        raise InputError(
            f"{sidecar} describes {artefact.name}, which does not exist.",
            "The manifest was copied without its file.",
            f"Copy {artefact.name} as well, or make it again with mde export.",
        )
    existing_file(artefact, "model")
    if not sidecar.is_file():
        raise InputError(
            f"{artefact} has no manifest.",
            f"{sidecar.name} is not beside it; it states input size, units and origin.",
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
    """Read a manifest of this or an older schema version from parsed JSON; arguments as of `read_strict`."""
    data = upgraded(data, RENAMED_IN_2, range(1, 2), MANIFEST_VERSION)
    parity = data.get("parity") if isinstance(data, dict) else None
    if isinstance(parity, dict) and isinstance(parity.get("runner"), str) and parity["runner"]:
        # Version 1 had no field for the backend; its name is the first word of the text.
        data = data | {"parity": {"backend": parity["runner"].split()[0]} | parity}
    return read_strict(Manifest, data, source, cure)


def read_checkpoint_info(path: Path) -> CheckpointInfo:
    """Read a checkpoint's header, without PyTorch.

    Raises:
        InputError: the file is missing, not a safetensors file, or not a checkpoint of this package.
    """
    from safetensors import SafetensorError, safe_open

    existing_file(path, "checkpoint")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint.",
            f"It is truncated or not a safetensors file ({error}).",
            "Copy or train it again.",
        ) from error
    if CHECKPOINT_KEY not in metadata:
        raise InputError(
            f"{path} is not a mirrordepth-edge checkpoint.",
            f"Its safetensors metadata has no '{CHECKPOINT_KEY}' entry.",
            "Pass a file that mde train wrote.",
        )
    cure = "It was written by another version; train or download it again."
    try:
        data = json.loads(metadata[CHECKPOINT_KEY])
    except ValueError as error:
        raise InputError(f"The header of {path} is not valid JSON.", str(error), cure) from error
    return read_strict(CheckpointInfo, data, str(path), cure)


def input_spec(model: ModelConfig, config: ExportConfig) -> TensorSpec:
    """Return the specification of the exported network's input; dynamic axes are -1."""
    uint8 = config.io == "uint8"
    spec = TensorSpec(
        name=INPUT_NAME,
        dtype="uint8" if uint8 else "float32",
        shape=(config.batch, *model.size_hw, 3) if uint8 else (config.batch, 3, *model.size_hw),
        layout="NHWC" if uint8 else "NCHW",
        range="0..255" if uint8 else "(rgb/255 - mean) / std",
        unit="RGB" if uint8 else "normalised RGB",
    )
    return _with_sizes(spec, config.sizes)


def output_spec(model: ModelConfig, config: ExportConfig) -> TensorSpec:
    """Return the specification of the exported network's output; dynamic axes are -1."""
    spec = TensorSpec(
        name=OUTPUT_NAME,
        dtype="float32",
        shape=(config.batch, *model.size_hw),
        layout=DEPTH_LAYOUT,
        range="> 0",
        unit="metres",
    )
    return _with_sizes(spec, config.sizes)


def _with_sizes(spec: TensorSpec, sizes: SizeRange | None) -> TensorSpec:
    return spec if sizes is None else spec.at(sizes.opt).with_dynamic_axes(sizes.dynamic_axes)
