"""Options that several verbs share, and how their text becomes values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.errors import OptionError

if TYPE_CHECKING:
    from mirrordepth_edge.camera.model import Camera
    from mirrordepth_edge.config import DataConfig, SessionOptions
    from mirrordepth_edge.predictor import DepthPredictor

NANO = "nano"

Model = Annotated[str, typer.Option(help="A .plan, .onnx or .safetensors file, nano or nano.fp16.")]
Near = Annotated[float | None, typer.Option(help="Where the colours begin, in metres.  [the model's range]")]
Far = Annotated[float | None, typer.Option(help="Where the colours end, in metres.  [the model's range]")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; one asked for by name is never replaced.")]
ClipWeights = Annotated[Path | None, typer.Option(help="Local CLIP weights instead of a download.")]
Backend = Annotated[str | None, typer.Option(help="openvino: run ONNX with it.  [what the file is for]")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="OpenVINO: multiply in bfloat16, on CPUs that can.")]

# Another camera than the model was trained with, told in one of three ways (`camera.camera_of`).
FocalPx = Annotated[float | None, typer.Option(metavar="F", help="The camera's focal length, in pixels of its frames.")]
FovDeg = Annotated[float | None, typer.Option(metavar="D", help="Or its horizontal field of view, in degrees.")]
Calibration = Annotated[Path | None, typer.Option(metavar="FILE", help="Or its calibration: OpenCV's, ROS's YAML.")]

# Pictures with measured depth: the same words for every verb that reads them.
Root = Annotated[Path, typer.Option(help="Folder with rgb and depth, NYU's .mat file, or a folder of NYU or KITTI.")]
Data = Annotated[str, typer.Option(help="What --root is: auto, folder, nyu or kitti.")]
ListFile = Annotated[Path | None, typer.Option("--list", help="List of pairs, as BTS has them; paths from --root.")]
DepthRoot = Annotated[Path | None, typer.Option(help="Where a list's depth is.  [--root]")]
KbCrop = Annotated[bool | None, typer.Option("--kb-crop/--no-kb-crop", help="Cut to 1216x352.  [KITTI only]")]
UnitsPerMetre = Annotated[
    float | None, typer.Option(min=1e-6, help="Depth PNG value of one metre.  [1000; KITTI: 256]")
]


def data_config(
    root: Path,
    kind: str = "auto",
    list_file: Path | None = None,
    depth_root: Path | None = None,
    kb_crop: bool | None = None,
    units_per_metre: float | None = None,
) -> DataConfig:
    """The data set that a command line describes.

    Raises:
        OptionError: the kind is none of those known.
    """
    from mirrordepth_edge.config import DataConfig

    if kind not in ("auto", "folder", "nyu", "kitti"):
        raise OptionError(f"--data {kind!r} is unknown.", "It is auto, folder, nyu or kitti.", "--data auto")
    return DataConfig(
        root=root,
        kind=kind,  # type: ignore[arg-type]
        list_file=list_file,
        depth_root=depth_root,
        kb_crop=kb_crop,
        units_per_metre=units_per_metre,
    )


def check_crop(crop: str | None) -> None:
    """Refuse a crop that is none of those known.

    Raises:
        OptionError: so it is.
    """
    if crop not in (None, "none", "eigen", "garg"):
        raise OptionError(f"--crop {crop!r} is unknown.", "It is none, eigen or garg.", "--crop eigen")


def announce(predictor: DepthPredictor, name: str) -> None:
    """Say what runs on what, so that no fallback and no random weights go unseen."""
    from mirrordepth_edge.commands.terminal import errors

    session = predictor.session
    errors.print(f"{name} on {session.device} ({session.backend} {session.version}, {session.precision})")
    warn(predictor)


def print_camera(camera: Camera, scale: float) -> None:
    """Report the camera that depth is scaled to: the `on_camera` of `predictor.load`."""
    from mirrordepth_edge.commands.terminal import errors

    errors.print(f"camera: {camera}; metres times {scale:.3g}")


def warn(predictor: DepthPredictor) -> None:
    """Notes on what a user would not expect of an opened model."""
    from mirrordepth_edge.commands.terminal import errors
    from mirrordepth_edge.machine.device import nvidia_gpus

    session = predictor.session
    if session.device == "cpu" and nvidia_gpus():
        errors.print(f"note: {nvidia_gpus()[0].name} is not used; mde doctor says why", style="yellow")
    random = () if predictor.trained else ("the weights are random; the depth means nothing",)
    for note in (*session.notes, *random):
        errors.print(f"note: {note}", style="yellow")


def session_options(
    device: str,
    clip_weights: Path | None = None,
    threads: int | None = None,
    backend: str | None = None,
    bf16: bool = False,
    network_size: str | None = None,
) -> SessionOptions:
    """Options for opening a model.

    Raises:
        OptionError: the device is none of those known.
    """
    from mirrordepth_edge.commands.sizes import parse_size
    from mirrordepth_edge.config import SessionOptions

    if device not in ("auto", "cpu", "cuda"):
        raise OptionError(f"--device {device!r} is no device.", "It is auto, cpu or cuda.", "--device auto")
    return SessionOptions(
        device=device,  # type: ignore[arg-type]
        clip_weights=clip_weights,
        threads=threads,
        backend=backend,
        bf16=bf16,
        network_hw=parse_size(network_size, "--network-size") if network_size else None,
    )


def torch_device(device: str) -> str:
    """The device PyTorch shall use for `--device`; it is asked for by name, or the GPU where there is one.

    Raises:
        MissingError: PyTorch is not installed, or the GPU asked for is not there.
    """
    from mirrordepth_edge.errors import MissingError, missing_package

    session_options(device)  # a name that is known
    try:
        import torch
    except ImportError as error:
        raise missing_package("PyTorch", "Training", "train") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise MissingError("PyTorch cannot use a GPU here.", "torch.cuda.is_available() is False.", "--device cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
