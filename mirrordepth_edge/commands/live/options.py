"""Options of `mde live`, as the terminal's help has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Option(help="Camera number, /dev/videoN, csi, rtsp:// or http:// URL, video, folder, or synthetic."),
]
List = Annotated[bool, typer.Option("--list", help="Show the cameras of this machine, and end.")]
Size = Annotated[str | None, typer.Option(metavar="HxW", help="Ask a camera for this size.")]
Rate = Annotated[float | None, typer.Option(metavar="HZ", help="And for so many frames a second.")]
PixelFormat = Annotated[str | None, typer.Option(help="And for this format, such as MJPG or YUYV.")]
Exposure = Annotated[float | None, typer.Option(metavar="MS", help="And to keep this exposure time.")]
Realtime = Annotated[bool, typer.Option("--realtime", help="A video at its own pace, not as fast as it goes.")]
NoStabilise = Annotated[bool, typer.Option("--no-stabilise", help="Show depth as it is predicted, with its flicker.")]
Web = Annotated[bool, typer.Option("--web", help="Show it in a browser, in place of a window.")]
Host = Annotated[str, typer.Option(help="Web: the address to listen on; others than this machine's need a token.")]
Port = Annotated[int, typer.Option(help="Web: the port.")]
Record = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="Record .mcap (Foxglove, ROS), .mp4 or .rrd (Rerun).")
]
SaveEvery = Annotated[float | None, typer.Option(metavar="S", help="Save a frame every so many seconds, in --saved.")]
Saved = Annotated[Path, typer.Option(metavar="DIR", help="Where --save-every saves.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Open the Rerun viewer: photo, depth, points.")]
Shm = Annotated[str | None, typer.Option(metavar="NAME", help="Put depth into shared memory of this name.")]
NoWindow = Annotated[bool, typer.Option("--no-window", help="Print rate and latency instead.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the statistics to this file.")]
