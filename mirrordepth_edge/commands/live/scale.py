"""The scale of the camera that `mde live` shows: measure, store, apply and report it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from mirrordepth_edge.artefact import model_path
from mirrordepth_edge.camera.model import Camera, Lens, camera_at
from mirrordepth_edge.camera.scale import KnownPoint, parse_known
from mirrordepth_edge.camera.scale_store import CameraScales, ScaleSetter
from mirrordepth_edge.commands.live.options import DepthOptions
from mirrordepth_edge.commands.terminal import errors
from mirrordepth_edge.config import ModelConfig, SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.sources.source import FrameSource

FRAMES = 15
"""Frames of a camera that a scale is measured over, because predictions flicker."""
SETTLING_FRAMES = 15
"""Frames of a camera to skip before that, until its exposure has settled."""


class Predictor(Protocol):
    """The part of `DepthPredictor` that is used here."""

    model: ModelConfig
    camera: Camera | Lens | None

    def __call__(self, frame: Frame) -> DepthMap: ...
    def scale(self, size_hw: SizeHW) -> float: ...
    def set_scale(self, size_hw: SizeHW, factor: float) -> None: ...
    def reset(self) -> None: ...


class LiveScale:
    """The scale of one source and one model.

    Args:
        source: as given on the command line.
        model: as given on the command line.
        options: --set-scale, --no-scale and --forget-scale.

    Raises:
        OptionError: the options cannot be combined, or a point is not valid.
    """

    def __init__(self, source: str, model: str, options: DepthOptions) -> None:
        if options.set_scale and options.no_scale:
            why = "One sets a scale, the other ignores it."
            raise OptionError("--set-scale and --no-scale cannot be combined.", why, "--set-scale alone")
        self._scales = CameraScales(source, model_path(model))
        self._points = parse_known(options.set_scale) if options.set_scale else ()
        self._use_stored = not options.set_scale and not options.no_scale
        self._forget = options.forget_scale

    def known_scale(self, size_hw: SizeHW) -> float | None:
        """Return the stored factor for this frame size, and print it, unless the options say otherwise."""
        scale = self._scales.get(size_hw) if self._use_stored else None
        if scale is None:
            return None
        errors.print(f"scale: {scale}, stored for {self._scales.camera}; --no-scale ignores it")
        return scale.factor

    def prepare(self, predictor: Predictor, opens: Callable[[], FrameSource]) -> None:
        """Do what --forget-scale and --set-scale ask for, before the loop starts.

        Args:
            opens: opens the source, in the mode that will be shown.

        Raises:
            OptionError: a point cannot be used.
            InputError: the source or the store cannot be used.
        """
        if self._forget:
            count = self._scales.forget()
            errors.print(f"scale: {'deleted' if count else 'none was stored'} for {self._scales.camera}")
        if self._points:
            self._measure(predictor, self._points, opens)

    def setter(self, predictor: Predictor, size_hw: SizeHW) -> ScaleSetter:
        """Return what accepts known points in frames of this size."""
        camera = camera_at(predictor.camera, predictor.model.focal, size_hw)
        store, key = self._scales.store, self._scales.key(size_hw)
        return ScaleSetter(store, key, lambda factor: predictor.set_scale(size_hw, factor), camera)

    def _measure(self, predictor: Predictor, points: tuple[KnownPoint, ...], opens: Callable[[], FrameSource]) -> None:
        """Set the scale from the source's first frames. The source is opened for this and closed again."""
        with opens() as source:
            for _ in range(SETTLING_FRAMES if source.live else 0):
                source.read()
            frame = source.read()
            if frame is None:
                raise InputError(f"{source.name} has no frames.", "It ended at once.", "Pass another source.")
            size_hw = frame.shape[0], frame.shape[1]
            setter = self.setter(predictor, size_hw)
            scale = setter.add(points, _depths(predictor, source, frame), predictor.scale(size_hw))
        predictor.reset()
        where = f"{self._scales.camera} at {size_hw[1]}x{size_hw[0]} in {self._scales.store.path}"
        errors.print(f"scale: {scale}, stored for {where}")
        if setter.camera is None:
            errors.print("note: the focal length is unknown; distances were used as depths", style="yellow")


def _depths(predictor: Predictor, source: FrameSource, first: Frame) -> Iterator[DepthMap]:
    """Predict the frames that a scale is measured over, without temporal filter."""
    frame: Frame | None = first
    # In a video, the point is given for the first frame.
    for _ in range(FRAMES if source.live else 1):
        if frame is not None:
            # After a reset the filter passes a frame unchanged; a lagging filter would bias the median.
            predictor.reset()
            yield predictor(frame)
        frame = source.read() if source.live else None
