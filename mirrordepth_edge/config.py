"""Settings as frozen dataclasses, and the presets.

Nothing here imports a heavy package or reads a file. The dataclasses only validate themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from mirrordepth_edge.errors import OptionError

SizeHW = tuple[int, int]
BatchHW = tuple[int, int, int]
"""Batch size, height and width in pixels."""
NormalisedFocal = tuple[float, float]
"""fx/W and fy/H: focal lengths divided by the image size, both in pixels."""
Precision = Literal["fp32", "fp16", "int8"]
CalibrationMethod = Literal["percentile", "entropy", "max", "mse"]
"""How activation ranges are derived from the observed values; see `graph.activations`."""
QuantisationScheme = Literal["gpu", "cpu"]
"""`gpu`: symmetric int8 and FP16; `cpu`: asymmetric uint8 activations and FP32."""
InputKind = Literal["uint8", "float"]
DataKind = Literal["auto", "folder", "nyu", "kitti"]
Crop = Literal["none", "eigen", "garg"]
Align = Literal["none", "median", "lsq"]
Part = Literal["train", "test"]
"""Part of a data set's official split."""

# CLIP's image statistics (openai/CLIP preprocessing); RGB order, range 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# EfficientNet-Lite was trained on (pixel - 127) / 128, which timm rounds to a mean and deviation of 0.5.
HALF = (0.5, 0.5, 0.5)
# The normalised focal length of a field of view of one degree; larger values are focal lengths in pixels.
MAX_FOCAL = 57.3


class Strict:
    """Base of dataclasses that are read from files: pydantic refuses unknown keys."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(Strict):
    """How a frame is converted to the network's input; stored with every artefact."""

    size_hw: SizeHW
    """Height and width of the network input, in pixels."""
    mean: tuple[float, float, float]
    """Mean of each RGB channel in 0..1, which the network subtracts."""
    std: tuple[float, float, float]
    """Standard deviation of each RGB channel in 0..1, by which the network divides."""
    fit: Literal["stretch"] = "stretch"
    """Frames of another aspect ratio are stretched, so that every pixel gets a depth."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Strict):
    """Definition of a mirror model, without its weights."""

    preset: str
    clip_model: str
    """open_clip model name."""
    pretrained: str
    """open_clip pretrained tag; `embedded` (towers inside the checkpoint) or `random-SEED`."""
    taps: tuple[int, ...]
    """Indices of the tower's intermediate outputs to use, from shallow to deep, counted from 0."""
    size_hw: SizeHW
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size_multiple: int
    """Height and width must be multiples of this many pixels."""
    mirror_length: int = 64
    """Number of rows of the mirror; at most the context length of the text tower."""
    width: int = 64
    """Channels in the decoder, and at the coarsest level of a pyramid."""
    heads: int = 4
    feedforward: int = 2048
    stride: int = 16
    """For ViTs: patch size in pixels, the cell size of the decoder's grid."""
    head_strides: tuple[int, int] = (4, 4)
    """For ViTs: upsampling factors of the two transposed convolutions; their product is `stride`."""
    blocks: int = 2
    """For convolutional towers: number of transformer blocks on the deepest feature map."""
    pyramid: tuple[int, ...] = ()
    """For convolutional towers: decoder channels at the shallower taps, from deep to shallow."""
    depth_limits_m: tuple[float, float] = (1e-3, 10.0)
    """Depth range for training and evaluation, in metres."""
    focal: NormalisedFocal | None = None
    """fx/W and fy/H of the training camera; None if it is unknown or there were several."""

    def __post_init__(self) -> None:
        if self.focal is not None and not all(0 < focal < MAX_FOCAL for focal in self.focal):
            raise ValueError(
                "focal must be fx divided by the image width and fy divided by its height, such as 0.81 and 1.08"
            )

    @property
    def preprocess(self) -> PreprocessConfig:
        return PreprocessConfig(size_hw=self.size_hw, mean=self.mean, std=self.std)


PRESETS: dict[str, ModelConfig] = {
    config.preset: config
    for config in (
        # As in the paper: taps after blocks 3, 6 and 9 (counted from 0) of OpenAI's ViT-B/16 at 352 x 352 pixels.
        ModelConfig(
            preset="vitb16",
            clip_model="ViT-B-16-quickgelu",
            pretrained="openai",
            taps=(3, 6, 9),
            size_hw=(352, 352),
            mean=CLIP_MEAN,
            std=CLIP_STD,
            size_multiple=16,
        ),
        # The model that ships with the package: EfficientNet-Lite0 with taps at strides 8, 16 and 32.
        ModelConfig(
            preset="nano",
            clip_model="mirrordepth-nano",
            pretrained="embedded",
            taps=(2, 3, 4),
            size_hw=(224, 288),
            mean=HALF,
            std=HALF,
            size_multiple=32,
            width=128,
            feedforward=512,
            pyramid=(96, 64),
        ),
        ModelConfig(
            preset="mobileclip2-s0",
            clip_model="MobileCLIP2-S0",
            pretrained="dfndr2b",
            taps=(1, 2, 3),
            size_hw=(256, 256),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            size_multiple=32,
            width=128,
            feedforward=512,
            pyramid=(96, 64),
        ),
        ModelConfig(
            preset="rn50",
            clip_model="RN50-quickgelu",
            pretrained="openai",
            taps=(2, 3, 4),
            size_hw=(224, 224),
            mean=CLIP_MEAN,
            std=CLIP_STD,
            size_multiple=32,
            width=128,
            feedforward=512,
            pyramid=(96, 64),
        ),
    )
}


def get_preset(name: str, cure: str) -> ModelConfig:
    """Return a preset by its name.

    Args:
        cure: what to type if there is no such preset.

    Raises:
        OptionError: the preset is unknown.
    """
    if name not in PRESETS:
        raise OptionError(f"Unknown preset {name!r}.", f"Available presets: {', '.join(PRESETS)}.", cure)
    return PRESETS[name]


def check_size(config: ModelConfig, size_hw: SizeHW) -> None:
    """Check that a model supports an input size.

    Raises:
        OptionError: height or width is not a positive multiple of the patch size or deepest stride.
    """
    multiple = config.size_multiple
    if all(side > 0 and side % multiple == 0 for side in size_hw):
        return
    nearest = tuple(max(multiple, round(side / multiple) * multiple) for side in size_hw)
    raise OptionError(
        f"{config.preset} cannot run at {size_hw[0]}x{size_hw[1]} pixels.",
        f"Height and width must be multiples of {multiple} (its patch or deepest stride).",
        f"--size {nearest[0]}x{nearest[1]}",
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Strict):
    """Location and format of images with measured depth."""

    root: Path
    """Folder with rgb and depth, NYU's `.mat`, a folder of NYU or KITTI, or the folder that a list's paths refer to."""
    kind: DataKind = "auto"
    list_file: Path | None = None
    """List of image and depth pairs; if None, it is looked up next to the data."""
    depth_root: Path | None = None
    """Folder of the depth files of a list, if it is not `root`."""
    units_per_metre: float | None = None
    """Value of one metre in depth PNGs; if None, the default of the format (1000, KITTI: 256)."""
    kb_crop: bool | None = None
    """Crop to 352x1216 pixels as in KITTI's depth benchmark; if None, only for KITTI."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Strict):
    """Hyperparameters for training mirror and decoder."""

    epochs: int = 25
    batch_size: int = 16
    """Images per optimiser step, over all processes and accumulation steps."""
    accumulate: int = 1
    """Number of gradient accumulation steps, to save memory."""
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.01
    warmup_steps: int = 100
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    """Decay of the exponential moving average of the weights, which is evaluated and saved; 0 disables it."""
    dropout: float = 0.0
    """Dropout rate of the taps' channels and of the decoder's blocks."""
    silog_lambda: float = 0.85
    """Weight of the squared mean in SILog: 1 ignores a global scale, 0 gives the mean squared log error."""
    log_l1_weight: float = 0.0
    """Weight of mean |ln p - ln y|, which constrains the metric scale that SILog largely ignores."""
    edge_weight: float = 0.0
    """Weight of the mean gradient of ln p - ln y at four scales, which sharpens edges."""
    flip_probability: float = 0.5
    rotate_deg: float = 2.5
    """Largest random rotation in either direction, in degrees (BTS: 2.5 indoors, 1 on roads)."""
    zoom_min: float = 1.0
    """Smallest random crop, as a fraction of the image. Depth is scaled by the same factor, because a crop enlarged to
    full size has a longer focal length, which a model for a fixed focal length must interpret as smaller depth."""
    jitter: float = 0.1
    """Largest relative change of gamma, brightness and each colour channel (as in BTS)."""
    bf16: bool = False
    """Run the frozen image tower in bfloat16 (autocast); mirror and decoder stay FP32."""
    feature_copies: int = 0
    """Number of augmented copies whose tower features are computed once and cached; epochs use them in turn. 0: new
    augmentations in each epoch, without a cache."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulate) < 1 or self.seed < 0:
            raise ValueError("epochs, batch_size and accumulate must be at least 1, and seed at least 0")
        if not (
            0 < self.zoom_min <= 1 and self.gradient_clip > 0 and 0 <= self.ema_decay < 1 and 0 <= self.dropout < 1
        ):
            raise ValueError("required: 0 < zoom_min <= 1, gradient_clip > 0, 0 <= ema_decay < 1 and 0 <= dropout < 1")


TRAINING: dict[str, TrainConfig] = {
    # For few images: stronger zoom and colour augmentation, and a log error to constrain the scale.
    "nano": TrainConfig(
        epochs=10,
        learning_rate=7e-4,
        ema_decay=0.99,
        dropout=0.1,
        log_l1_weight=2.0,
        edge_weight=0.5,
        rotate_deg=0.0,
        zoom_min=0.75,
        jitter=0.15,
        bf16=True,
    ),
    # These are trained on GPUs, which support bfloat16 since Ampere.
    "vitb16": TrainConfig(bf16=True),
    "mobileclip2-s0": TrainConfig(bf16=True),
    "rn50": TrainConfig(bf16=True),
}
"""Hyperparameters of the presets; others use `TrainConfig()`."""


@dataclass(frozen=True, kw_only=True)
class SizeRange(Strict):
    """Range of sizes of a network with dynamic shapes. An axis with the same length in all three is fixed."""

    min: BatchHW
    opt: BatchHW
    """Size for measurements, and for which an engine is optimised."""
    max: BatchHW

    def __post_init__(self) -> None:
        if any(not 0 < low <= opt <= high for low, opt, high in zip(*self, strict=True)):
            raise ValueError("required for each axis: 0 < min <= opt <= max")

    def __iter__(self) -> Iterator[BatchHW]:
        return iter((self.min, self.opt, self.max))

    def __str__(self) -> str:
        """Format as the value of --dynamic: `160x224,224x288,448x576`, with a batch in front if it can be above 1."""
        first = 1 if self.max[0] == 1 else 0
        return ",".join("x".join(map(str, size[first:])) for size in self)

    def has(self, size: BatchHW) -> bool:
        """Whether a size is in the range."""
        return all(low <= n <= high for low, n, high in zip(self.min, size, self.max, strict=True))

    @property
    def dynamic_axes(self) -> str:
        """Letters of the axes that are not fixed, of N, H and W."""
        return "".join(c for c, low, high in zip("NHW", self.min, self.max, strict=True) if low < high)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of an ONNX export."""

    precision: Precision = "fp32"
    size_hw: SizeHW | None = None
    """Network input size; the model's own if None."""
    sizes: SizeRange | None = None
    """Range of a file with dynamic shapes, whose opt size is the network's; fixed shape if None."""
    io: InputKind = "uint8"
    opset: int = 18
    batch: int = 1
    """Frames per inference. More than one is only useful for benchmarks, since a camera delivers one at a time."""


@dataclass(frozen=True, kw_only=True)
class QuantiseConfig:
    """Settings of INT8 quantisation."""

    scheme: QuantisationScheme = "gpu"
    method: CalibrationMethod = "percentile"
    max_loss: float = 0.01
    """Largest relative increase of AbsRel over FP32; without measured depth, largest AbsRel against FP32's depth."""
    force: bool = False
    """Write the file even if the accuracy check fails, and mark it as failed."""


@dataclass(frozen=True, kw_only=True)
class TargetConfig(Strict):
    """A device that artefacts are built for; one TOML file in `export/` each."""

    name: str
    description: str
    backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    precision: Precision
    """Default precision."""
    compute_capabilities: tuple[str, ...] = ()
    """Compute capabilities of the GPU, such as "8.7"; empty for a CPU."""
    jetpack: str | None = None
    """Expected JetPack release of a Jetson, such as "6.2"."""
    size_hw: SizeHW | None = None
    """Recommended network input size; the model's own if None."""
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    """Peak memory bandwidth, in 1e9 bytes per second."""
    peak_tops: dict[Precision, float] | None = None
    """Peak compute without sparsity, in 1e12 operations per second; one MAC is two operations."""
    sources: dict[str, str] | None = None
    """URLs of the sources, by the name of the field."""

    def __post_init__(self) -> None:
        figures = (self.memory_gb, self.bandwidth_gb_s, *(self.peak_tops or {}).values(), *(self.size_hw or ()))
        if any(figure is not None and not 0 < figure < float("inf") for figure in figures):
            raise ValueError("memory_gb, bandwidth_gb_s, peak_tops and size_hw must be above 0")
        if any(not re.fullmatch(r"\d+\.\d", capability) for capability in self.compute_capabilities):
            raise ValueError('compute capabilities must be written like "8.7"')
        if bool(self.compute_capabilities) is (self.backend == "onnxruntime"):
            raise ValueError("a GPU target must have compute_capabilities, and a CPU target must not")


@dataclass(frozen=True, kw_only=True)
class BuildConfig(Strict):
    """Settings of the engine builder; stored in the engine's manifest."""

    workspace_gib: float | None = None
    """Largest GPU memory for the intermediate results of a kernel; the builder's default if None."""
    optimisation_level: int | None = None
    """0 to 5: effort of the search for fast kernels; the builder's default, 3, if None."""
    timing_cache: bool = True
    """Store kernel timings for the next build on this GPU."""
    verbosity: Literal["detailed", "layer-names", "none"] = "detailed"
    """Layer information that the engine contains."""
    dynamic: SizeRange | None = None
    """Range of sizes for a network with dynamic shapes; the range of the ONNX file if None."""
    hardware_compat: Literal["none", "ampere+", "same-cc"] = "none"
    """Other GPUs on which the engine runs: any since Ampere, or those with the same compute capability."""
    version_compat: bool = False
    """Make the engine compatible with later versions of the runtime."""
    weights: Literal["full", "stripped"] = "full"
    """`stripped` leaves the weights out; they are read from the ONNX file when the engine is loaded."""

    def __post_init__(self) -> None:
        if self.workspace_gib is not None and not 0 < self.workspace_gib < float("inf"):
            raise ValueError("workspace_gib must be above 0")
        if self.optimisation_level is not None and not 0 <= self.optimisation_level <= 5:
            raise ValueError("optimisation_level must be 0 to 5")


BenchProtocol = Literal["host", "network", "trtexec-10", "trtexec-11"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Settings of a latency measurement."""

    iterations: int = 200
    warmup: int | None = None
    """Frames before timing starts; if None, until the times have settled."""
    frame_hw: SizeHW = (480, 640)
    """Size of the camera frames, in pixels."""
    protocol: BenchProtocol = "host"
    """Where timing starts and stops; see `bench.measure.BOUNDARIES`."""


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Options for opening an artefact with a backend."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is the GPU if the backend can use it, else the CPU."""
    threads: int | None = None
    """CPU threads; the number of cores if None."""
    clip_weights: Path | None = None
    """Local file with CLIP weights, for a checkpoint whose towers are not embedded."""
    backend: str | None = None
    """Another backend than the artefact's default, such as `openvino` for ONNX."""
    bf16: bool = False
    """Compute in bfloat16 on CPUs that support it; only with OpenVINO."""
    yields: bool = False
    """Release the CPU cores after every run, because another session runs next. ONNX Runtime's threads otherwise spin
    for about 30 ms, so that sessions in turn appear 1.6 times as slow as alone."""
    cuda_graph: bool = True
    """Engines: run as one CUDA graph if possible; otherwise `session.notes` has the reason."""
    zero_copy: bool | None = None
    """Engines: let the GPU access host buffers directly; if None, only on devices with unified memory."""
    trust: bool = False
    """Engines: load one without a manifest; it contains native code, so its source must be trusted."""
    network_hw: SizeHW | None = None
    """Dynamic shapes: network input size; the opt size if None."""
    batch: int | None = None
    """Dynamic batch: frames per inference; the smallest accepted number if None."""
    in_flight: int = 1
    """Engines: number of frames in flight, each with its own context and buffers."""
