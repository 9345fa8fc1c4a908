"""`mde live`: depth of a camera, a stream or a video, as it happens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirrordepth_edge.commands.parameters import NANO, ClipWeights, Device, Far, Model, Near, announce, session_options

if TYPE_CHECKING:
    from mirrordepth_edge.live.pipeline import LiveResult
    from mirrordepth_edge.preprocess import Frame

TITLE = "mde live"
WINDOW_WIDTH_PX = 1400
QUIT_KEYS = (27, ord("q"))


def live(
    source: Annotated[
        str,
        typer.Option(help="Camera number, /dev/videoN, video file, rtsp:// or http:// URL, or synthetic."),
    ] = "0",
    model: Model = NANO,
    device: Device = "auto",
    near: Near = None,
    far: Far = None,
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
    with load(model, session_options(device, clip_weights)) as predictor, open_source(source) as opened:
        limits_m = colour_limits(near, far, predictor.model.depth_limits_m)
        session = predictor.session
        setup = {"source": opened.name, "model": model, "backend": session.backend}
        setup |= {"device": session.device, "precision": session.precision}
        announce(predictor, f"{opened.name}: {model}")
        with _Window(limits_m) if has_display and not no_window else _StatusLine() as view:
            stats = run_live(opened, predictor, view.show, max_frames=frames, should_stop=view.wants_to_quit)
    if json_file is not None:
        with written_whole(json_file) as temporary:
            temporary.write_text(json.dumps({**setup, **asdict(stats)}, indent=2) + "\n", encoding="utf-8")
    console.print(str(stats))
    if stats.interrupted:
        raise KeyboardInterrupt


class _StatusLine:
    """One line on the terminal that is kept up to date."""

    def __enter__(self) -> _StatusLine:
        from rich.live import Live

        from mirrordepth_edge.commands.terminal import errors
        from mirrordepth_edge.live.pipeline import Ticker

        self._tick = Ticker()
        self._line = Live("measuring …", console=errors, auto_refresh=False, transient=True)
        self._line.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()

    def show(self, result: LiveResult) -> None:
        if text := self._tick(result):
            self._line.update(text, refresh=True)

    def wants_to_quit(self) -> bool:
        return False


class _Window:
    """Photo, depth in colours and their scale, side by side; rate and latency in the title."""

    def __init__(self, limits_m: tuple[float, float]) -> None:
        self._limits_m = limits_m
        self._bar: Frame | None = None
        self._canvas: Frame | None = None
        self._bgr: Frame | None = None

    def __enter__(self) -> _Window:
        import cv2

        from mirrordepth_edge.errors import MissingError
        from mirrordepth_edge.live.pipeline import Ticker

        self._tick = Ticker()
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            why = "It was built without windows, as opencv-python-headless is."
            raise MissingError("OpenCV cannot open a window.", why, "--no-window") from error
        return self

    def __exit__(self, *_: object) -> None:
        import cv2

        cv2.destroyAllWindows()

    def show(self, result: LiveResult) -> None:
        import cv2

        from mirrordepth_edge.draw import scale_bar, side_by_side
        from mirrordepth_edge.postprocess import colourise

        height, width = result.frame.shape[:2]
        if self._bar is None or self._bar.shape[0] != height:
            self._bar = scale_bar(height, self._limits_m)
            width = 2 * width + self._bar.shape[1]
            cv2.resizeWindow(TITLE, WINDOW_WIDTH_PX, WINDOW_WIDTH_PX * height // width)
        pictures = result.frame, colourise(result.depth_m, self._limits_m), self._bar
        self._canvas = side_by_side(pictures, out=self._canvas)
        self._bgr = cv2.cvtColor(self._canvas, cv2.COLOR_RGB2BGR, dst=self._bgr)  # type: ignore[assignment]
        cv2.imshow(TITLE, self._bgr)  # type: ignore[arg-type]
        if text := self._tick(result):
            cv2.setWindowTitle(TITLE, f"{TITLE}: {text}")

    def wants_to_quit(self) -> bool:
        import cv2

        key = cv2.waitKey(1) & 0xFF  # also lets the window draw itself
        closed = self._canvas is not None and cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) < 1
        return closed or key in QUIT_KEYS
