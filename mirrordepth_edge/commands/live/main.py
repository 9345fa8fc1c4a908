"""Run live depth: open the source, the model and the outputs, and report what happened."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from functools import partial

from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.commands.live.options import (
    DepthOptions,
    ModelOptions,
    OutputOptions,
    RunOptions,
    SourceOptions,
    ViewOptions,
)
from mirrordepth_edge.commands.live.outputs import open_outputs
from mirrordepth_edge.commands.live.scale import LiveScale
from mirrordepth_edge.commands.live.view import open_view
from mirrordepth_edge.commands.parameters import parse_size
from mirrordepth_edge.commands.target import resolve
from mirrordepth_edge.commands.terminal import announce, console, errors, print_camera, print_notes
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.imaging.draw import colour_limits
from mirrordepth_edge.imaging.temporal_filter import TemporalFilterConfig
from mirrordepth_edge.live.loop import run_live
from mirrordepth_edge.live.recording.base import Recording
from mirrordepth_edge.predictor import DepthPredictor, load
from mirrordepth_edge.sources.cameras import CameraOptions
from mirrordepth_edge.sources.open import open_source
from mirrordepth_edge.sources.reconnect import reconnecting
from mirrordepth_edge.sources.source import FrameSource
from mirrordepth_edge.support.files import ensure_folder, write_json


def show_depth(
    source_options: SourceOptions,
    model_options: ModelOptions,
    camera: Camera | Lens | None,
    session: SessionOptions,
    depth_options: DepthOptions,
    view_options: ViewOptions,
    output_options: OutputOptions,
    run_options: RunOptions,
) -> None:
    """Show and record the depth of a source until it ends or the user quits.

    Raises:
        KeyboardInterrupt: The user pressed Ctrl-C; the statistics are printed and written.
    """
    if run_options.json_file is not None:
        ensure_folder(run_options.json_file.parent)
    factory = _source_factory(source_options)
    scale = LiveScale(source_options.source, model_options.model, depth_options)
    with ExitStack() as stack:
        predictor = stack.enter_context(_load(model_options, camera, session, depth_options, scale))
        limits_m = colour_limits(view_options.near, view_options.far, predictor.model.depth_limits_m)
        # Before the loop opens the source: a camera can be opened only once.
        scale.prepare(predictor, factory)
        source = stack.enter_context(reconnecting(factory))
        announce(predictor, f"{source.name}: {model_options.model}")
        notes = source.notes
        print_notes(notes)
        setup = _setup(source, model_options.model, predictor)
        view = open_view(view_options, limits_m, scale, predictor)
        outputs = (view, *open_outputs(view_options, output_options, setup, limits_m, source, predictor))
        for output in outputs:
            stack.enter_context(output)
            if url := getattr(output, "url", None):
                console.print(f"open {url}")
        stats = run_live(
            source,
            predictor,
            outputs=outputs,
            max_frames=run_options.frames,
            should_stop=view.wants_to_quit,
            on_state=lambda state: errors.print(str(state), style="yellow"),
        )
    print_notes(note for note in source.notes if note not in notes)
    print_notes(output.problem for output in stats.outputs if output.problem)
    # Recordings know their frame count only now that they are closed.
    for output in outputs:
        if isinstance(output, Recording):
            console.print(str(output))
    if run_options.json_file is not None:
        write_json(run_options.json_file, {**setup, **asdict(stats)})
    console.print(str(stats))
    # The exit status must show Ctrl-C, but only after the statistics are printed and written.
    if stats.interrupted:
        raise KeyboardInterrupt


def _source_factory(options: SourceOptions) -> partial[FrameSource]:
    """Return a function that opens the source: once, or again after it was lost."""
    capture = CameraOptions(
        size_hw=parse_size(options.size),
        rate_hz=options.rate,
        pixel_format=options.pixel_format,
        exposure_ms=options.exposure,
    )
    return partial(open_source, options.source, capture, realtime=options.realtime)


def _load(
    model: ModelOptions, camera: Camera | Lens | None, session: SessionOptions, depth: DepthOptions, scale: LiveScale
) -> DepthPredictor:
    return load(
        resolve(model.model, model.target, session),
        session,
        camera,
        known_scale=scale.known_scale,
        on_camera=print_camera,
        temporal_filter=None if depth.no_stabilise else TemporalFilterConfig(),
    )


def _setup(source: FrameSource, model: str, predictor: DepthPredictor) -> dict[str, str]:
    """Return what ran on what, for the web page and the statistics file."""
    session = predictor.session
    return {
        "source": source.name,
        "model": model,
        "backend": session.backend,
        "device": session.device,
        "precision": session.precision,
    }
