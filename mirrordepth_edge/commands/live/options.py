"""Options of `mde live`, in groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mirrordepth_edge.commands.parameters import (
    NANO,
    Backend,
    Bf16,
    Calibration,
    ClipWeights,
    Device,
    Far,
    FocalPx,
    FovDeg,
    Model,
    Near,
    NetworkSize,
    Target,
    Trust,
)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Where frames come from."""

    source: Annotated[
        str, typer.Option(help="Camera number, /dev/videoN, csi, rtsp:// or http:// URL, video, folder, or synthetic.")
    ] = "0"
    list_cameras: Annotated[bool, typer.Option("--list", help="List the cameras of this machine and exit.")] = False
    size: Annotated[str | None, typer.Option(metavar="HxW", help="Frame size to request from a camera.")] = None
    rate: Annotated[float | None, typer.Option(metavar="HZ", help="Frame rate to request from a camera.")] = None
    pixel_format: Annotated[str | None, typer.Option(help="Pixel format to request, such as MJPG or YUYV.")] = None
    exposure: Annotated[float | None, typer.Option(metavar="MS", help="Fixed exposure time to request (ms).")] = None
    realtime: Annotated[bool, typer.Option("--realtime", help="Play a video at its own frame rate.")] = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and what runs it."""

    model: Model = NANO
    target: Target = None
    trust: Trust = False
    device: Device = "auto"
    backend: Backend = None
    network_size: NetworkSize = None
    bf16: Bf16 = False
    clip_weights: ClipWeights = None


@dataclass(frozen=True, kw_only=True)
class DepthOptions:
    """How predictions become metres."""

    focal_px: FocalPx = None
    fov_deg: FovDeg = None
    calibration: Calibration = None
    set_scale: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y=D", help="Pixel at a known distance, such as 320,240=1.85m; stored for this camera."),
    ] = None
    no_scale: Annotated[bool, typer.Option("--no-scale", help="Ignore the stored scale.")] = False
    forget_scale: Annotated[bool, typer.Option("--forget-scale", help="Delete the stored scale.")] = False
    no_stabilise: Annotated[
        bool, typer.Option("--no-stabilise", help="Turn off the temporal filter that reduces flicker.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """How depth is shown."""

    near: Near = None
    far: Far = None
    no_window: Annotated[
        bool, typer.Option("--no-window", help="Print rate and latency instead of opening a window.")
    ] = False
    web: Annotated[bool, typer.Option("--web", help="Show depth in a browser instead of a window.")] = False
    host: Annotated[str, typer.Option(help="Address for --web; addresses other than localhost need a token.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(help="Port for --web.")] = 8000


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where results go besides the view."""

    record: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Record .mcap (Foxglove, ROS), .mp4 or .rrd (Rerun).")
    ] = None
    save_every: Annotated[float | None, typer.Option(metavar="S", help="Save a frame every S seconds, in --saved.")] = (
        None
    )
    saved: Annotated[Path, typer.Option(metavar="DIR", help="Folder for --save-every.")] = Path("saved")
    rerun: Annotated[bool, typer.Option("--rerun", help="Open the Rerun viewer: image, depth, point cloud.")] = False
    shm: Annotated[str | None, typer.Option(metavar="NAME", help="Write depth to shared memory of this name.")] = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """When the run ends, and what it leaves."""

    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the statistics to this file.")] = None


def flat_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command whose parameters are option groups, so that typer sees one parameter per option.

    Args:
        command: a function whose parameters are all annotated with dataclasses; each field is a typer option with a
            default.
    """
    groups = {name: group for name, group in get_type_hints(command).items() if name != "return"}
    parameters = []
    for group in groups.values():
        hints = get_type_hints(group, include_extras=True)
        parameters += [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
            for field in fields(group)
        ]
    signature = Signature(parameters)

    @wraps(command)
    def flat(**values: Any) -> None:
        given = signature.bind(**values).arguments
        command(
            **{
                name: group(**{field.name: given[field.name] for field in fields(group) if field.name in given})
                for name, group in groups.items()
            }
        )

    # typer reads these two instead of the parameters of `flat`.
    flat.__signature__ = signature  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat
