"""`mde live`: live depth of a camera, a stream or a video."""

from __future__ import annotations

from mirrordepth_edge.commands.live.options import (
    DepthOptions,
    ModelOptions,
    OutputOptions,
    RunOptions,
    SourceOptions,
    ViewOptions,
    flat_options,
)


@flat_options
def live(
    source: SourceOptions,
    model: ModelOptions,
    depth: DepthOptions,
    view: ViewOptions,
    output: OutputOptions,
    run: RunOptions,
) -> None:
    """Show live metric depth of a camera, a stream or a video.

    The newest frame of a camera always wins; older frames are dropped and counted. In the window, q or Esc quits; click
    a pixel, type its distance, such as 1.85m, and press Enter to set the scale for this camera. Latency is the time of
    the predictor; age is the time from a frame's arrival to its depth. A lost camera is reopened when it returns.
    """
    from mirrordepth_edge.commands.live.outputs import show_cameras
    from mirrordepth_edge.commands.live.session import run_session

    if source.list_cameras:
        show_cameras()
    else:
        run_session(source, model, depth, view, output, run)
