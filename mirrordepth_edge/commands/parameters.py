"""Options that several verbs share, and the parsing of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints, overload

import typer

from mirrordepth_edge.camera.model import Camera, Lens, camera_of
from mirrordepth_edge.config import BatchHW, Crop, DataConfig, DataKind, SessionOptions, SizeHW, SizeRange
from mirrordepth_edge.errors import MissingError, OptionError, missing_package

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

    The message suggests the first value, which is the default. typer before 0.19 does not know `Literal`, and its own
    message names no cure.
    """
    known = get_args(values)

    def parse(text: str) -> str:
        if text not in known:
            why = f"It is {', '.join(known[:-1])} or {known[-1]}."
            raise OptionError(f"{option} {text!r} is unknown.", why, f"{option} {known[0]}")
        return text

    return typer.Option(option, parser=parse, metavar=f"[{'|'.join(known)}]", **settings)


def flat_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command that takes groups of options, so that typer sees one parameter per option.

    Args:
        command: A function whose parameters are typer options, or dataclasses whose fields are.

    Returns:
        A function that takes the options by keyword and makes the groups.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint) and isinstance(hint, type)}
    parameters = []
    for name, parameter in signature(command).parameters.items():
        if name in groups:
            own = get_type_hints(groups[name], include_extras=True)
            parameters += [
                Parameter(
                    field.name,
                    Parameter.KEYWORD_ONLY,
                    default=Parameter.empty if field.default is MISSING else field.default,
                    annotation=own[field.name],
                )
                for field in fields(groups[name])
            ]
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @wraps(command)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(
                **{field.name: values.pop(field.name) for field in fields(group) if field.name in values}
            )
        command(**values)

    # typer reads these two instead of the parameters of `flat`.
    flat.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


Model = Annotated[str, typer.Option(help="A .plan, .onnx or .safetensors file, nano or nano.fp16.")]
Target = Annotated[str | None, runtime_option(help="here: build an engine from the ONNX file, cache it, and run it.")]
Trust = Annotated[
    bool, runtime_option("--trust", help="Load an engine without a manifest (it runs native code; trust its source).")
]
Device = Annotated[
    DeviceName, choice(DeviceName, "--device", help="An explicit choice never falls back.", rich_help_panel=RUNTIME)
]
Backend = Annotated[str | None, runtime_option(help="openvino: run ONNX with OpenVINO.  [default: by file type]")]
NetworkSize = Annotated[
    str | None, runtime_option(metavar="HxW", help="Network input size of a model with dynamic shapes.")
]
ClipWeights = Annotated[Path | None, typer.Option(help="Local CLIP weights instead of a download.")]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="Network input size in pixels, such as 224x288.")]
Near = Annotated[float | None, colours_option(help="Nearest depth of the colour map (m).  [default: model's]")]
Far = Annotated[float | None, colours_option(help="Farthest depth of the colour map (m).  [default: model's]")]
Root = Annotated[Path, typer.Option(help="Folder with rgb/ and depth/, NYU's .mat file, or a folder of NYU or KITTI.")]
CropOption = Annotated[
    Crop | None, choice(Crop, "--crop", help="Evaluated region.  [default: NYU eigen, KITTI garg, else none]")
]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """What runs a model."""

    trust: Trust = False
    device: Device = "auto"
    backend: Backend = None
    network_size: NetworkSize = None
    bf16: Annotated[bool, runtime_option("--bf16", help="OpenVINO: compute in bfloat16 if the CPU supports it.")] = (
        False
    )
    clip_weights: ClipWeights = None

    def session(self, threads: int | None = None) -> SessionOptions:
        """Return the options for opening a model.

        Raises:
            OptionError: --network-size is not HEIGHTxWIDTH.
        """
        return SessionOptions(
            device=self.device,
            clip_weights=self.clip_weights,
            threads=threads,
            backend=self.backend,
            bf16=self.bf16,
            network_hw=parse_size(self.network_size, "--network-size"),
            trust=self.trust,
        )


@dataclass(frozen=True, kw_only=True)
class LensOptions:
    """A camera other than the one the model was trained with."""

    focal_px: Annotated[float | None, camera_option(metavar="PIXELS", help="Focal length in pixels of the frame.")] = (
        None
    )
    fov_deg: Annotated[float | None, camera_option(metavar="DEGREES", help="Horizontal field of view.")] = None
    calibration: Annotated[
        Path | None, camera_option(metavar="FILE", help="Calibration file (OpenCV or ROS YAML).")
    ] = None

    def camera(self) -> Camera | Lens | None:
        """Return the camera that an option describes.

        Raises:
            OptionError, InputError: The options exclude each other, or the file cannot be read.
        """
        return camera_of(self.focal_px, self.fov_deg, self.calibration)


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """How a data set is laid out."""

    data: Annotated[DataKind, choice(DataKind, "--data", help="Layout of --root.", rich_help_panel=DATASET)] = "auto"
    list_file: Annotated[
        Path | None, dataset_option("--list", help="List of pairs in the format of BTS, relative to --root.")
    ] = None
    depth_root: Annotated[Path | None, dataset_option(help="Root of the depth files of --list.  [default: --root]")] = (
        None
    )
    kb_crop: Annotated[
        bool | None, dataset_option("--kb-crop/--no-kb-crop", help="Crop to 1216x352.  [default: KITTI only]")
    ] = None
    units_per_metre: Annotated[
        float | None,
        dataset_option(min=1e-6, metavar="UNITS", help="Value of a depth PNG at 1 m.  [default: 1000; KITTI: 256]"),
    ] = None

    def config(self, root: Path) -> DataConfig:
        """Return the data set in `root`."""
        return DataConfig(
            root=root,
            kind=self.data,
            list_file=self.list_file,
            depth_root=self.depth_root,
            kb_crop=self.kb_crop,
            units_per_metre=self.units_per_metre,
        )


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


@overload
def parse_size(text: str, option: str = "--size") -> SizeHW: ...
@overload
def parse_size(text: None, option: str = "--size") -> None: ...
@overload
def parse_size(text: str | None, option: str = "--size") -> SizeHW | None: ...
def parse_size(text: str | None, option: str = "--size") -> SizeHW | None:
    """Parse `224x288` into (height, width); None stays None.

    Raises:
        OptionError: The text is not HEIGHTxWIDTH.
    """
    if text is None:
        return None
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
        return parse_size(size), None
    sizes = parse_range(dynamic)
    if size is not None:
        why = "The second size of --dynamic is the one to optimise for."
        raise OptionError("--size and --dynamic cannot be combined.", why, "Leave --size out.")
    _, height, width = sizes.opt
    if not sizes.dynamic_axes:
        why = "Its three sizes are the same."
        raise OptionError(f"--dynamic {dynamic} has no dynamic axis.", why, f"--size {height}x{width}")
    return (height, width), sizes
