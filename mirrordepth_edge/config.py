"""Settings as frozen dataclasses: config in, result out, at every seam.

Nothing here imports anything heavy, reads a file or has behaviour beyond checking itself.
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
"""Frames at once, and their height and width in pixels."""
NormalisedFocal = tuple[float, float]
"""fx/W and fy/H: focal lengths over the size of the picture, both in pixels."""
Precision = Literal["fp32", "fp16", "int8"]
CalibrationMethod = Literal["max", "entropy", "percentile", "mse"]
"""How the range that an activation's integers span is taken from what it was seen to take."""
QuantisationScheme = Literal["gpu", "cpu"]
"""`gpu`: symmetric int8, the rest in FP16; `cpu`: asymmetric uint8 activations, the rest in FP32."""
InputKind = Literal["uint8", "float"]
DataKind = Literal["auto", "folder", "nyu", "kitti"]
Crop = Literal["none", "eigen", "garg"]
Align = Literal["none", "median", "lsq"]
Part = Literal["train", "test"]
"""Part of a data set's official split."""

# CLIP's own image statistics (openai/CLIP preprocessing) and ImageNet's; RGB order, range 0..1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# EfficientNet-Lite was trained on (pixel - 127) / 128, which timm states as one half each.
HALF = (0.5, 0.5, 0.5)
# A lens that sees one degree; more than that is a focal length in pixels.
LONGEST_FOCAL = 57.3


class Strict:
    """Base of everything read from a file: pydantic refuses keys it does not know."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(Strict):
    """How a frame becomes the network's input; travels with every artefact."""

    size_hw: SizeHW
    """Height and width of the network input, in pixels."""
    mean: tuple[float, float, float]
    """Per-channel mean of RGB in 0..1, subtracted by the network."""
    std: tuple[float, float, float]
    """Per-channel standard deviation of RGB in 0..1, divided out by the network."""
    fit: Literal["stretch"] = "stretch"
    """A frame of another aspect ratio is stretched, so that every pixel gets a depth."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Strict):
    """Everything that defines a mirror model, except its weights."""

    preset: str
    clip_model: str
    """open_clip model name."""
    pretrained: str
    """open_clip pretrained tag; `embedded` (towers inside the checkpoint) or `random-SEED`."""
    taps: tuple[int, ...]
    """Indices of the tower's intermediates, shallow to deep, counted from 0."""
    size_hw: SizeHW
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size_multiple: int
    """Height and width must be multiples of this many pixels."""
    mirror_length: int = 64
    """Rows of the mirror, at most the text tower's context length."""
    width: int = 64
    """Channels inside the decoder, and where a pyramid is coarsest."""
    heads: int = 4
    feedforward: int = 2048
    stride: int = 16
    """For ViTs: pixels per cell of the decoder's grid, which is the patch size."""
    head_strides: tuple[int, int] = (4, 4)
    """For ViTs: upsampling of the two transposed convolutions; their product is `stride`."""
    blocks: int = 2
    """For convolutional towers: transformer blocks over the deepest map."""
    pyramid: tuple[int, ...] = ()
    """For convolutional towers: channels of the decoder at each shallower tap, deep to shallow."""
    depth_limits_m: tuple[float, float] = (1e-3, 10.0)
    """Depths the model was trained for, in metres; also the range it is evaluated in."""
    focal: NormalisedFocal | None = None
    """fx/W and fy/H of the camera it was trained with; None where that is unknown or there were several."""

    def __post_init__(self) -> None:
        if self.focal is not None and not all(0 < each < LONGEST_FOCAL for each in self.focal):
            raise ValueError("focal is fx over the picture's width and fy over its height, such as 0.81 and 1.08")

    @property
    def preprocess(self) -> PreprocessConfig:
        return PreprocessConfig(size_hw=self.size_hw, mean=self.mean, std=self.std)


PRESETS: dict[str, ModelConfig] = {
    config.preset: config
    for config in (
        # The paper: taps after blocks 3, 6 and 9 (from 0) of OpenAI's ViT-B/16 at 352 x 352.
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
        # Ships inside the package. EfficientNet-Lite0 taps at strides 8, 16 and 32.
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


def check_size(config: ModelConfig, size_hw: SizeHW) -> None:
    """Refuse a network size that the tower cannot be cut into.

    Raises:
        OptionError: a side is no positive multiple of the patch.
    """
    multiple = config.size_multiple
    if all(side > 0 and side % multiple == 0 for side in size_hw):
        return
    near = tuple(max(multiple, round(side / multiple) * multiple) for side in size_hw)
    raise OptionError(
        f"{config.preset} cannot run at {size_hw[0]}x{size_hw[1]} pixels.",
        f"Height and width must be multiples of {multiple} (its patch or deepest stride).",
        f"--size {near[0]}x{near[1]}",
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig(Strict):
    """Where pictures with measured depth are, and how they are read."""

    root: Path
    """Folder with rgb and depth; NYU's `.mat`; a folder that holds NYU or KITTI; where a list's paths start."""
    kind: DataKind = "auto"
    list_file: Path | None = None
    """Names the pairs; found beside the data where None."""
    depth_root: Path | None = None
    """Where a list's depth is, if not under `root`."""
    units_per_metre: float | None = None
    """Depth PNG value of one metre; the kind's own where None (1000, KITTI 256)."""
    kb_crop: bool | None = None
    """Cut pictures to 352x1216 as KITTI's depth benchmark does; KITTI only, where None."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Strict):
    """One training run of mirror and decoder."""

    epochs: int = 25
    batch_size: int = 16
    """Pictures of one optimiser step, over all processes and all accumulated parts."""
    accumulate: int = 1
    """Parts that a step is computed in, one after the other, where memory is short."""
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.01
    warmup_steps: int = 100
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    """Of the running mean of the weights, which is what is evaluated and kept; 0 keeps the weights themselves."""
    dropout: float = 0.0
    """Share of the taps' channels, and of what the decoder's blocks pass on, that each view goes without."""
    silog_lambda: float = 0.85
    """Share of the mean log error that SILog forgives; 1 forgives a global scale entirely."""
    log_l1_weight: float = 0.0
    """Weight of mean |ln p - ln y|, which pins the metric scale that SILog leaves loose."""
    edge_weight: float = 0.0
    """Weight of the mean difference of ln p - ln y between neighbours at four scales, which sharpens edges."""
    flip_probability: float = 0.5
    rotate_deg: float = 2.5
    """Largest random turn of the picture, either way, in degrees (BTS: 2.5 indoors, 1 on roads)."""
    zoom_min: float = 1.0
    """Smallest crop as a share of the picture; depth is scaled by the same share, because a crop
    seen at full size is a longer lens, and a fixed-focal model must read it as nearer."""
    jitter: float = 0.1
    """Largest relative change of gamma, brightness and each colour channel (as BTS)."""
    bf16: bool = False
    """Run the frozen image tower in bfloat16 (autocast); mirror and decoder stay FP32."""
    feature_copies: int = 0
    """Augmented copies whose tower features are computed once and kept; epochs take them in turn. 0: new views
    each epoch, nothing kept."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.accumulate) < 1 or self.seed < 0:
            raise ValueError("epochs, batch_size and accumulate are at least 1, the seed at least 0")
        if not (
            0 < self.zoom_min <= 1 and self.gradient_clip > 0 and 0 <= self.ema_decay < 1 and 0 <= self.dropout < 1
        ):
            raise ValueError("0 < zoom_min <= 1, gradient_clip > 0, 0 <= ema_decay < 1 and 0 <= dropout < 1")


TRAINING: dict[str, TrainConfig] = {
    # Few pictures: wider views, and a plain log error to pin the scale.
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
    # Trained on GPUs, all of which have bfloat16 since Ampere.
    "vitb16": TrainConfig(bf16=True),
    "mobileclip2-s0": TrainConfig(bf16=True),
    "rn50": TrainConfig(bf16=True),
}
"""How presets are trained where that differs from `TrainConfig()`."""


@dataclass(frozen=True, kw_only=True)
class SizeRange(Strict):
    """Sizes of a network that takes several. A length that is the same in all three is fixed."""

    min: BatchHW
    opt: BatchHW
    """What it is measured at, and an engine is tuned for."""
    max: BatchHW

    def __post_init__(self) -> None:
        each = zip(self.min, self.opt, self.max, strict=True)
        if any(not 0 < low <= usual <= high for low, usual, high in each):
            raise ValueError("sizes go from the smallest over the usual to the largest, and are above 0")

    def __iter__(self) -> Iterator[BatchHW]:
        return iter((self.min, self.opt, self.max))

    def __str__(self) -> str:
        """As it is typed: `160x224,224x288,448x576`, with the frames before where they are not 1 throughout."""
        first = 1 if self.max[0] == 1 else 0
        return ",".join("x".join(map(str, each[first:])) for each in self)

    def has(self, size: BatchHW) -> bool:
        """Whether a size lies within."""
        return all(low <= n <= high for low, n, high in zip(self.min, size, self.max, strict=True))

    @property
    def dynamic_axes(self) -> str:
        """Which lengths are not fixed, of N, H and W."""
        return "".join(c for c, low, high in zip("NHW", self.min, self.max, strict=True) if low < high)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What an exported ONNX file should be."""

    precision: Precision = "fp32"
    size_hw: SizeHW | None = None
    """Network input size; the model's own where None."""
    sizes: SizeRange | None = None
    """Sizes that one file shall take; its usual one is the network's then."""
    io: InputKind = "uint8"
    opset: int = 18
    batch: int = 1
    """Frames of one inference. More than one are for measuring the network alone: a camera gives one at a time."""


@dataclass(frozen=True, kw_only=True)
class QuantiseConfig:
    """How a file is made INT8, and what that may cost."""

    scheme: QuantisationScheme = "gpu"
    method: CalibrationMethod = "percentile"
    max_loss: float = 0.01
    """By what share AbsRel may grow over FP32's; without measured depth, the largest AbsRel against FP32's depth."""
    force: bool = False
    """Write what fails, marked as failed."""


@dataclass(frozen=True, kw_only=True)
class TargetConfig(Strict):
    """Where an artefact is meant to run; one TOML file in `export/` each."""

    name: str
    description: str
    backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    precision: Precision
    """Precision used where none is asked for."""
    compute_capabilities: tuple[str, ...] = ()
    """GPU compute capabilities such as "8.7"; empty for a CPU."""
    jetpack: str | None = None
    """The release that a Jetson is expected to have, such as "6.2"."""
    size_hw: SizeHW | None = None
    """Network input size advised for it; the model's own where None."""
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    """Peak of its main memory, in 1e9 bytes a second."""
    peak_tops: dict[Precision, float] | None = None
    """Dense peaks, without sparsity, in 1e12 operations a second; one multiply-add is two operations."""
    sources: dict[str, str] | None = None
    """Addresses that figures are from, by the key of the figures."""

    def __post_init__(self) -> None:
        figures = (self.memory_gb, self.bandwidth_gb_s, *(self.peak_tops or {}).values(), *(self.size_hw or ()))
        if any(figure is not None and not 0 < figure < float("inf") for figure in figures):
            raise ValueError("memory_gb, bandwidth_gb_s, peak_tops and size_hw are above 0")
        if any(not re.fullmatch(r"\d+\.\d", each) for each in self.compute_capabilities):
            raise ValueError('a compute capability is written like "8.7"')
        if bool(self.compute_capabilities) is (self.backend == "onnxruntime"):
            raise ValueError("a GPU target names its compute_capabilities, a CPU has none")


@dataclass(frozen=True, kw_only=True)
class BuildConfig(Strict):
    """What an engine's builder is told beyond the network; recorded with the engine."""

    workspace_gib: float | None = None
    """Most GPU memory that a kernel may use for its intermediates; the builder's own limit where None."""
    optimisation_level: int | None = None
    """0 to 5: how long the builder searches for fast kernels; its own level, 3, where None."""
    timing_cache: bool = True
    """Keep what kernels were timed at, for the next build on this GPU."""
    verbosity: Literal["detailed", "layer-names", "none"] = "detailed"
    """What the engine can tell of its layers."""
    dynamic: SizeRange | None = None
    """For a network whose sizes are open; the range that it was exported with where None."""
    hardware_compat: Literal["none", "ampere+", "same-cc"] = "none"
    """Other GPUs that the engine runs on: any since Ampere, or those of the same compute capability."""
    version_compat: bool = False
    """Run in later versions of the runtime too."""
    weights: Literal["full", "stripped"] = "full"
    """`stripped` leaves the weights out; they are put back from the ONNX file when the engine is loaded."""

    def __post_init__(self) -> None:
        if self.workspace_gib is not None and not 0 < self.workspace_gib < float("inf"):
            raise ValueError("workspace_gib is above 0")
        if self.optimisation_level is not None and not 0 <= self.optimisation_level <= 5:
            raise ValueError("optimisation_level is 0 to 5")


BenchProtocol = Literal["host", "network", "trtexec-10", "trtexec-11"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How a latency measurement is taken."""

    iterations: int = 200
    warmup: int | None = None
    """Frames before timing starts; until times have settled where None."""
    frame_hw: SizeHW = (480, 640)
    """Size of the camera frame that enters the path, in pixels."""
    protocol: BenchProtocol = "host"
    """Where the clock starts and stops: `bench.measure.BOUNDARIES`."""


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What a backend may be told when it opens an artefact."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU where the backend really drives one, else the CPU, and says which."""
    threads: int | None = None
    """CPU threads; the machine's cores where None."""
    clip_weights: Path | None = None
    """Local CLIP weights file for a checkpoint whose towers are not embedded."""
    backend: str | None = None
    """Another backend than the one that the artefact is for, such as `openvino` for ONNX."""
    bf16: bool = False
    """Let the CPU multiply in bfloat16 where it can; only OpenVINO does."""
    yields: bool = False
    """Let go of the CPU's cores after every run, for another session runs next. Threads that wait for more work by
    spinning keep cores for some 30 ms (ONNX Runtime), so that sessions in turn seem 1.6 times as slow as alone."""
    cuda_graph: bool = True
    """Engines: replay the network's launches as one CUDA graph where that can be; `session.notes` says why not."""
    zero_copy: bool | None = None
    """Engines: let the GPU read and write the host's own buffers; where None, only if they are the same memory."""
    trust: bool = False
    """Engines: load one without a manifest, which is to run a program of whoever made it."""
    network_hw: SizeHW | None = None
    """Artefacts whose sizes are open: the network's input size; the usual one where None."""
    batch: int | None = None
    """Those whose batch is open: frames of one inference; the fewest that it takes where None."""
    in_flight: int = 1
    """Engines: frames that `submit` takes before one is collected, each with a context and buffers of its own."""
