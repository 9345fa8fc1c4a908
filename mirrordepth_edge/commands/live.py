"""`mde live`: depth of a camera, a stream or a video, as it happens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirrordepth_edge.commands.live_view import StatusLine, Window
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
    announce,
    session_options,
)


def live(
    source: Annotated[
        str,
        typer.Option(help="Camera number, /dev/videoN, video file, rtsp:// or http:// URL, or synthetic."),
    ] = "0",
    model: Model = NANO,
    device: Device = "auto",
    backend: Backend = None,
    bf16: Bf16 = False,
    near: Near = None,
    far: Far = None,
    focal_px: FocalPx = None,
    fov_deg: FovDeg = None,
    calibration: Calibration = None,
    no_window: Annotated[bool, typer.Option("--no-window", help="Print rate and latency instead.")] = False,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the statistics to this file.")] = None,
    clip_weights: ClipWeights = None,
) -> None:
    """Show live metric depth of a camera, a stream or a video.

    A camera's newest frame always wins; frames that came too early are dropped and counted. In the
    window, q or Esc quits. Latency is the predictor's; age is from a frame's arrival to its depth.
    """
    import json
    import os
    import sys
    from dataclasses import asdict

    from mirrordepth_edge.camera import camera_of
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.draw import colour_limits
    from mirrordepth_edge.files import ensure_folder, written_whole
    from mirrordepth_edge.live.pipeline import run_live
    from mirrordepth_edge.live.sources import open_source
    from mirrordepth_edge.runtime import load

    if json_file is not None:
        ensure_folder(json_file.parent)
    has_display = not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if not has_display and not no_window:
        errors.print("Neither DISPLAY nor WAYLAND_DISPLAY is set: going on without a window.")
    camera = camera_of(focal_px, fov_deg, calibration)
    options = session_options(device, clip_weights, backend=backend, bf16=bf16)
    with load(model, options, camera) as predictor, open_source(source) as opened:
        limits_m = colour_limits(near, far, predictor.model.depth_limits_m)
        session = predictor.session
        setup = {"source": opened.name, "model": model, "backend": session.backend}
        setup |= {"device": session.device, "precision": session.precision}
        announce(predictor, f"{opened.name}: {model}")
        with Window(limits_m) if has_display and not no_window else StatusLine() as view:
            stats = run_live(opened, predictor, view.show, max_frames=frames, should_stop=view.wants_to_quit)
    if json_file is not None:
        with written_whole(json_file) as temporary:
            temporary.write_text(json.dumps({**setup, **asdict(stats)}, indent=2) + "\n", encoding="utf-8")
    console.print(str(stats))
    if stats.interrupted:
        raise KeyboardInterrupt
