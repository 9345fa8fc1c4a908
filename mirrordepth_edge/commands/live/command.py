"""`mde live`: depth of a camera, a stream or a video, as it happens."""

from __future__ import annotations

from pathlib import Path

from mirrordepth_edge.commands.live import options as of
from mirrordepth_edge.commands.live.scale import ForgetScale, NoScale, SetScale
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
    announce,
    parse_size,
    session_options,
)
from mirrordepth_edge.commands.target import resolve


def live(
    source: of.Source = "0",
    list_cameras: of.List = False,
    model: Model = NANO,
    target: Target = None,
    trust: Trust = False,
    device: Device = "auto",
    backend: Backend = None,
    network_size: NetworkSize = None,
    bf16: Bf16 = False,
    size: of.Size = None,
    rate: of.Rate = None,
    pixel_format: of.PixelFormat = None,
    exposure: of.Exposure = None,
    realtime: of.Realtime = False,
    no_stabilise: of.NoStabilise = False,
    near: Near = None,
    far: Far = None,
    focal_px: FocalPx = None,
    fov_deg: FovDeg = None,
    calibration: Calibration = None,
    set_scale: SetScale = None,
    no_scale: NoScale = False,
    forget_scale: ForgetScale = False,
    web: of.Web = False,
    host: of.Host = "127.0.0.1",
    port: of.Port = 8000,
    record: of.Record = None,
    save_every: of.SaveEvery = None,
    saved: of.Saved = Path("saved"),
    rerun: of.Rerun = False,
    shm: of.Shm = None,
    no_window: of.NoWindow = False,
    frames: of.Frames = None,
    json_file: of.JsonFile = None,
    clip_weights: ClipWeights = None,
) -> None:
    """Show live metric depth of a camera, a stream or a video.

    A camera's newest frame always wins; frames that came too early are dropped and counted. In the window, q or Esc
    quits; a click and a distance such as 1.85m and Enter set the scale for this camera. Latency is the predictor's;
    age is from a frame's arrival to its depth. A camera that is lost is waited for.
    """
    from contextlib import ExitStack
    from dataclasses import asdict, replace
    from itertools import count

    from mirrordepth_edge.camera.model import camera_of
    from mirrordepth_edge.commands.live import outputs as live_run
    from mirrordepth_edge.commands.live.scale import LiveScale, use_scale
    from mirrordepth_edge.commands.terminal import console, errors
    from mirrordepth_edge.imaging.draw import colour_limits
    from mirrordepth_edge.imaging.temporal_filter import Stabiliser
    from mirrordepth_edge.live.loop import run_live
    from mirrordepth_edge.predictor import load
    from mirrordepth_edge.sources.open import CameraOptions, open_source
    from mirrordepth_edge.sources.reconnect import reconnecting
    from mirrordepth_edge.support.files import ensure_folder, write_json

    if list_cameras:
        live_run.show_cameras()
        return
    if json_file is not None:
        ensure_folder(json_file.parent)
    size_hw = parse_size(size) if size else None
    asked = CameraOptions(size_hw=size_hw, rate_hz=rate, pixel_format=pixel_format, exposure_ms=exposure)
    camera = camera_of(focal_px, fov_deg, calibration)
    options = replace(session_options(device, clip_weights, None, backend, bf16, network_size), trust=trust)
    with ExitStack() as stack:
        predictor = stack.enter_context(load(resolve(model, target, options), options, camera))
        limits_m = colour_limits(near, far, predictor.model.depth_limits_m)
        scale = LiveScale(predictor, source, model, lambda: open_source(source, asked, realtime=realtime))
        use_scale(scale, set_scale, no_scale, forget_scale)
        opened = stack.enter_context(reconnecting(lambda: open_source(source, asked, realtime=realtime)))
        if not no_stabilise:
            predictor.stabiliser = Stabiliser()
            if not opened.live:  # read faster or slower than it was filmed
                numbers, rate_hz = count(), opened.rate_hz or live_run.UNKNOWN_HZ
                predictor.clock = lambda: next(numbers) / rate_hz
        session = predictor.session
        setup = {"source": opened.name, "model": model, "backend": session.backend}
        setup |= {"device": session.device, "precision": session.precision}
        announce(predictor, f"{opened.name}: {model}")
        at_first = opened.notes
        for note in at_first:  # such as another mode than the camera was asked for
            errors.print(f"note: {note}", style="yellow")
        view = live_run.view_of(web=web, no_window=no_window, limits_m=limits_m, scale=scale, predictor=predictor)
        wanted = live_run.Wanted(
            web=(host, port) if web else None,
            record=tuple(record or ()),
            saved=(saved, save_every) if save_every is not None else None,
            rerun=rerun,
            shm=shm,
        )
        outputs = live_run.outputs_of(wanted, setup, limits_m, opened, predictor)
        for output in (view, *outputs):
            stack.enter_context(output)
            if url := getattr(output, "url", None):
                console.print(f"open {url}")
        stats = run_live(
            opened,
            predictor,
            outputs=(view, *outputs),
            max_frames=frames,
            should_stop=view.wants_to_quit,
            on_state=lambda state: errors.print(str(state), style="yellow"),
        )
    later = (note for note in opened.notes if note not in at_first)
    for note in (*later, *(each.problem for each in stats.outputs if each.problem)):
        errors.print(f"note: {note}", style="yellow")
    for line in live_run.told(outputs):
        console.print(line)
    if json_file is not None:
        write_json(json_file, {**setup, **asdict(stats)})
    console.print(str(stats))
    if stats.interrupted:
        raise KeyboardInterrupt
