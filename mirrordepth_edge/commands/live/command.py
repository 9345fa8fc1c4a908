"""`mde live`: live depth of a camera, a stream or a video."""

from __future__ import annotations

from mirrordepth_edge.commands.live.options import (
    DepthOptions,
    ModelOptions,
    OutputOptions,
    RunOptions,
    SourceOptions,
    ViewOptions,
)
from mirrordepth_edge.commands.parameters import LensOptions, RuntimeOptions, flat_options


@flat_options
def live(
    source_options: SourceOptions,
    model_options: ModelOptions,
    runtime_options: RuntimeOptions,
    lens_options: LensOptions,
    depth_options: DepthOptions,
    view_options: ViewOptions,
    output_options: OutputOptions,
    run_options: RunOptions,
) -> None:
    """Show live metric depth of a camera, a stream or a video.

    The newest frame of a camera always wins; older frames are dropped and counted. In the window, q or Esc quits; click
    a pixel, type its distance, such as 1.85m, and press Enter to set the scale for this camera. Latency is the time of
    the predictor; age is the time from a frame's arrival to its depth. A lost camera is reopened when it returns.
    """
    from mirrordepth_edge.commands.live.main import show_depth
    from mirrordepth_edge.commands.live.outputs import show_cameras

    if source_options.list_cameras:
        show_cameras()
        return
    show_depth(
        source_options,
        model_options,
        lens_options.camera(),
        runtime_options.session(),
        depth_options,
        view_options,
        output_options,
        run_options,
    )
