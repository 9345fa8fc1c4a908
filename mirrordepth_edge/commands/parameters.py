"""Options that several verbs share, and the parsing of their values."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from mirrordepth_edge.config import BatchHW, Crop, DataConfig, DataKind, SessionOptions, SizeHW, SizeRange
from mirrordepth_edge.errors import MissingError, OptionError, missing_package

if TYPE_CHECKING:
    from mirrordepth_edge.camera.model import Camera
    from mirrordepth_edge.predictor import DepthPredictor

NANO = "nano"
DeviceName = Literal["auto", "cpu", "cuda"]

# Sections of `mde VERB --help`.
RUNTIME = "Runtime options"
runtime_option = partial(typer.Option, rich_help_panel=RUNTIME)
COLOURS = "Colour options"
colours_option = partial(typer.Option, rich_help_panel=COLOURS)
CAMERA = "Camera options (give one of them)"
camera_option = partial(typer.Option, rich_help_panel=CAMERA)
DATASET = "Data set options"
dataset_option = partial(typer.Option, rich_help_panel=DATASET)


def choice(values: Any, option: str, **settings: Any) -> Any:
    """Return a typer option that accepts the values of a `Literal` and refuses others with the three-part message.

    typer before 0.19 does not know `Literal`, and its own message names no cure.
    """
    known = get_args(values)

    def parse(text: str) -> str:
        if text not in known:
            why = f"It is {', '.join(known[:-1])} or {known[-1]}."
            raise OptionError(f"{option} {text!r} is unknown.", why, f"{option} {known[0]}")
        return text

    return typer.Option(option, parser=parse, metavar=f"[{'|'.join(known)}]", **settings)


Model = Annotated[str, typer.Option(help="A .plan, .onnx or .safetensors file, nano or nano.fp16.")]
Target = Annotated[str | None, runtime_option(help="here: build an engine from the ONNX file, cache it, and run it.")]
Trust = Annotated[
    bool, runtime_option("--trust", help="Load an engine without a manifest (it runs native code; trust its source).")
]
Device = Annotated[
    DeviceName, choice(DeviceName, "--device", help="An explicit choice never falls back.", rich_help_panel=RUNTIME)
]
Backend = Annotated[str | None, runtime_option(help="openvino: run ONNX with OpenVINO.  [default: by file type]")]
Bf16 = Annotated[bool, runtime_option("--bf16", help="OpenVINO: compute in bfloat16 if the CPU supports it.")]
NetworkSize = Annotated[
    str | None, runtime_option(metavar="HxW", help="Network input size of a model with dynamic shapes.")
]
ClipWeights = Annotated[Path | None, typer.Option(help="Local CLIP weights instead of a download.")]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="Network input size in pixels, such as 224x288.")]

Near = Annotated[float | None, colours_option(help="Nearest depth of the colour map (m).  [default: model's]")]
Far = Annotated[float | None, colours_option(help="Farthest depth of the colour map (m).  [default: model's]")]

# A camera other than the one the model was trained with (`camera.model.camera_of`).
FocalPx = Annotated[float | None, camera_option(metavar="PIXELS", help="Focal length in pixels of the frame.")]
FovDeg = Annotated[float | None, camera_option(metavar="DEGREES", help="Horizontal field of view.")]
Calibration = Annotated[Path | None, camera_option(metavar="FILE", help="Calibration file (OpenCV or ROS YAML).")]

Root = Annotated[Path, typer.Option(help="Folder with rgb/ and depth/, NYU's .mat file, or a folder of NYU or KITTI.")]
Data = Annotated[DataKind, choice(DataKind, "--data", help="Layout of --root.", rich_help_panel=DATASET)]
ListFile = Annotated[
    Path | None, dataset_option("--list", help="List of pairs in the format of BTS, relative to --root.")
]
DepthRoot = Annotated[Path | None, dataset_option(help="Root of the depth files of --list.  [default: --root]")]
KbCrop = Annotated[
    bool | None, dataset_option("--kb-crop/--no-kb-crop", help="Crop to 1216x352.  [default: KITTI only]")
]
UnitsPerMetre = Annotated[
    float | None,
    dataset_option(min=1e-6, metavar="UNITS", help="Value of a depth PNG at 1 m.  [default: 1000; KITTI: 256]"),
]
CropOption = Annotated[
    Crop | None, choice(Crop, "--crop", help="Evaluated region.  [default: NYU eigen, KITTI garg, else none]")
]


def data_config(
    root: Path,
    kind: DataKind = "auto",
    list_file: Path | None = None,
    depth_root: Path | None = None,
    kb_crop: bool | None = None,
    units_per_metre: float | None = None,
) -> DataConfig:
    """Return the data set that the options describe."""
    return DataConfig(
        root=root,
        kind=kind,
        list_file=list_file,
        depth_root=depth_root,
        kb_crop=kb_crop,
        units_per_metre=units_per_metre,
    )


def session_options(
    device: DeviceName,
    clip_weights: Path | None = None,
    threads: int | None = None,
    backend: str | None = None,
    bf16: bool = False,
    network_size: str | None = None,
    trust: bool = False,
) -> SessionOptions:
    """Return the options for opening a model.

    Raises:
        OptionError: `network_size` is not HEIGHTxWIDTH.
    """
    return SessionOptions(
        device=device,
        clip_weights=clip_weights,
        threads=threads,
        backend=backend,
        bf16=bf16,
        network_hw=parse_size(network_size, "--network-size") if network_size else None,
        trust=trust,
    )


def announce(predictor: DepthPredictor, name: str) -> None:
    """Print which device and backend run a model, and `warn`."""
    from mirrordepth_edge.commands.terminal import errors

    session = predictor.session
    errors.print(f"{name} on {session.device} ({session.backend} {session.version}, {session.precision})")
    warn(predictor)


def print_camera(camera: Camera, scale: float) -> None:
    """Report the camera that depth is scaled to: the `on_camera` of `predictor.load`."""
    from mirrordepth_edge.commands.terminal import errors

    errors.print(f"camera: {camera}; depth scaled by {scale:.3g}")


def warn(predictor: DepthPredictor) -> None:
    """Print notes of a model: an unused GPU, a fallback, random weights."""
    from mirrordepth_edge.commands.terminal import errors
    from mirrordepth_edge.machine.device import nvidia_gpus

    session = predictor.session
    if session.device == "cpu" and nvidia_gpus():
        errors.print(f"note: {nvidia_gpus()[0].name} is not used; run mde doctor to see why", style="yellow")
    random = () if predictor.trained else ("the weights are random; the depth is meaningless",)
    for note in (*session.notes, *random):
        errors.print(f"note: {note}", style="yellow")


def torch_device(device: DeviceName) -> str:
    """Return PyTorch's device for `--device`; `auto` is the GPU if PyTorch can use it.

    Raises:
        MissingError: PyTorch is not installed, or `cuda` was given and PyTorch cannot use a GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_package("PyTorch", "Training", "train") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError("PyTorch cannot use a GPU here.", "torch.cuda.is_available() is False.", "--device cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def parse_size(text: str, option: str = "--size") -> SizeHW:
    """Parse `224x288` into (height, width).

    Raises:
        OptionError: The text is not HEIGHTxWIDTH.
    """
    match = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text.strip())
    if match is None:
        raise OptionError(f"{option} {text!r} is not a size.", "A size is HEIGHTxWIDTH in pixels.", f"{option} 224x288")
    return int(match[1]), int(match[2])


def parse_range(text: str, option: str = "--dynamic") -> SizeRange:
    """Parse `MIN,OPT,MAX`, each HEIGHTxWIDTH or BATCHxHEIGHTxWIDTH.

    Raises:
        OptionError: There are not three sizes, one is not a size, or they do not grow.
    """
    try:
        smallest, opt, largest = map(_batch_size, text.split(","))
        return SizeRange(min=smallest, opt=opt, max=largest)
    except ValueError as error:
        raise OptionError(
            f"{option} {text} is not a range of sizes.",
            "It is MIN,OPT,MAX, each HEIGHTxWIDTH or BATCHxHEIGHTxWIDTH; they must not shrink.",
            f"{option} 160x224,224x288,448x576",
        ) from error


def _batch_size(text: str) -> BatchHW:
    match = re.fullmatch(r"(?:([1-9]\d*)[xX×])?([1-9]\d*)[xX×]([1-9]\d*)", text.strip())
    if match is None:
        raise ValueError(text)
    return int(match[1] or 1), int(match[2]), int(match[3])


def parse_export_size(size: str | None, dynamic: str | None) -> tuple[SizeHW | None, SizeRange | None]:
    """Return the network input size (opt) of `--size` or `--dynamic`, and the range of `--dynamic`.

    Raises:
        OptionError: A value cannot be parsed, both are given, or the range has no dynamic axis.
    """
    if dynamic is None:
        return parse_size(size) if size else None, None
    sizes = parse_range(dynamic)
    if size is not None:
        why = "The second size of --dynamic is the one to optimise for."
        raise OptionError("--size and --dynamic exclude each other.", why, "Leave --size out.")
    _, height, width = sizes.opt
    if not sizes.dynamic_axes:
        why = "Its three sizes are the same."
        raise OptionError(f"--dynamic {dynamic} has no dynamic axis.", why, f"--size {height}x{width}")
    return (height, width), sizes
