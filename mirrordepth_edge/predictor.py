"""Metric depth from frames: preprocessing, inference and postprocessing in one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.backends.base import Arrays, Session
from mirrordepth_edge.backends.registry import open_artefact, open_session
from mirrordepth_edge.camera.model import Camera, Lens, scale_for
from mirrordepth_edge.config import ModelConfig, NormalisedFocal, SessionOptions, SizeHW
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.imaging.postprocess import DepthMap, Postprocessor
from mirrordepth_edge.imaging.preprocess import Frame, Preprocessor
from mirrordepth_edge.imaging.temporal_filter import TemporalFilter, TemporalFilterConfig

KnownScale = Callable[[SizeHW], float | None]
OnCamera = Callable[[Camera, float], object]


class DepthPredictor:
    """Predict metric depth for frames of any size.

    Args:
        session: an open session, which the predictor takes over.
        model: what the session runs.
        trained: False for random weights, whose depth means nothing.
        camera: the camera that the frames come from; the training camera if None. Depth is scaled to it
            (`camera.model.scale_for`).
        batch: batch size of the session. More than 1 is for benchmarks: the frame is repeated, and the depth is that of
            the first copy.
        known_scale: called with the first frame size and with each new one; returns a measured scale factor, which
            takes precedence over the camera's, or None.
        on_camera: called with the camera and its scale factor when `camera` is first applied to a frame size.
        temporal_filter: reduce flicker over time, for consecutive frames of one video. None turns it off.

    Raises:
        OptionError: a camera is given, but the model does not record its training camera; or the session has another
            batch size.
    """

    def __init__(
        self,
        session: Session,
        model: ModelConfig,
        *,
        trained: bool = True,
        camera: Camera | Lens | None = None,
        batch: int = 1,
        known_scale: KnownScale = lambda size_hw: None,
        on_camera: OnCamera = lambda camera, scale: None,
        temporal_filter: TemporalFilterConfig | None = None,
    ) -> None:
        self.session = session
        self.model = model
        self.trained = trained
        self.camera = camera
        self.batch = batch
        self._known_scale = known_scale
        self._on_camera = on_camera
        (image,), (depth,) = session.inputs, session.outputs
        if image.shape[0] != batch:
            raise OptionError(
                f"The model has batch size {image.shape[0]}, not {batch}.",
                "Models with a larger batch are for benchmarks; a camera delivers one frame at a time.",
                "Use a model with batch size 1, the default of mde export.",
            )
        if camera is not None:
            _require_focal(model)
        self._input, self._output = image.name, depth.name
        self._preprocess = Preprocessor(model.preprocess, image.io)
        self._filter = None if temporal_filter is None else TemporalFilter(temporal_filter)
        self._postprocess = Postprocessor()
        self._scales: dict[SizeHW, float] = {}
        # Not in place: the output array belongs to the session, which may return it unchanged.
        self._scaled_m = np.empty(depth.shape, np.float32)

    def __call__(self, frame: Frame, time_s: float | None = None) -> DepthMap:
        """Predict the depth of one frame.

        Args:
            frame: uint8 RGB, shape `[H, W, 3]`.
            time_s: capture time in seconds from any monotonic clock, for the temporal filter; now if None.

        Returns:
            float32 `[H, W]`, metres. The array is reused: copy it to keep it past the next call.

        Raises:
            InputError: the frame is not uint8 RGB.
            OptionError: the frame's aspect ratio is not the camera's.
        """
        outputs = self.session.infer(self.prepare(frame))
        return self.finish(outputs, (frame.shape[0], frame.shape[1]), time_s)

    def prepare(self, frame: Frame) -> Arrays:
        """Return the session's input for a frame. The arrays are reused."""
        image = self._preprocess(frame)
        return {self._input: image if self.batch == 1 else image.repeat(self.batch, axis=0)}

    def finish(self, outputs: Arrays, size_hw: SizeHW, time_s: float | None = None) -> DepthMap:
        """Return depth in metres at `size_hw` from the session's outputs. The array is reused.

        Args:
            time_s: as for calling the predictor, for the frame that was prepared last.
        """
        depth_m = outputs[self._output]
        # Before scaling: otherwise `set_scale` would look like a depth step to the filter.
        if self._filter is not None:
            time_s = perf_counter() if time_s is None else time_s
            depth_m = self._filter(self._preprocess.image, depth_m[0], time_s)[None]
        scale = self.scale(size_hw)
        if scale != 1.0:
            depth_m = np.multiply(depth_m, scale, out=self._scaled_m)
        return self._postprocess(depth_m, size_hw)

    def scale(self, size_hw: SizeHW) -> float:
        """Return the factor applied to the network's depth for this frame size: the one from `set_scale`, else the
        known scale, else the camera's, else 1.

        Raises:
            OptionError: the aspect ratio is not the camera's.
        """
        # Once per frame size: a known scale is read from a file, and `on_camera` reports.
        if size_hw not in self._scales:
            known = self._known_scale(size_hw)
            self._scales[size_hw] = self._camera_scale(size_hw) if known is None else known
        return self._scales[size_hw]

    def set_scale(self, size_hw: SizeHW, factor: float) -> None:
        """Use this factor for frames of this size from now on, such as after measuring a known distance."""
        self._scales[size_hw] = factor

    def reset(self) -> None:
        """Start a new video: the temporal filter forgets earlier frames. Scale factors are kept."""
        if self._filter is not None:
            self._filter.reset()

    def _camera_scale(self, size_hw: SizeHW) -> float:
        if self.camera is None:
            return 1.0
        camera = self.camera.at(size_hw)
        scale = scale_for(_require_focal(self.model), camera)
        self._on_camera(camera, scale)
        return scale

    def close(self) -> None:
        """Close the session."""
        self.session.close()

    def __enter__(self) -> DepthPredictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(
    model: str | Path | Artefact = "nano",
    options: SessionOptions | None = None,
    camera: Camera | Lens | None = None,
    batch: int = 1,
    *,
    known_scale: KnownScale = lambda size_hw: None,
    on_camera: OnCamera = lambda camera, scale: None,
    temporal_filter: TemporalFilterConfig | None = None,
) -> DepthPredictor:
    """Open a model for prediction.

    Args:
        model: `nano` or `nano.fp16`, which ship with the package, or a `.onnx`, `.plan` or `.safetensors` file, or one
            that is open already.
        options: device, threads and CLIP weights.
        camera: the camera that the frames come from, as `camera.model.Camera`, `Lens` or `read_camera` describe it; the
            training camera if None.
        batch: batch size that the file was exported with.
        known_scale: see `DepthPredictor`.
        on_camera: see `DepthPredictor`.
        temporal_filter: see `DepthPredictor`.

    Raises:
        InputError: the file cannot be used.
        MissingError: hardware or a package is missing.
        OptionError: a camera is given, but the model does not record its training camera; or the file has another batch
            size.
    """
    artefact = open_artefact(model, trust=options is not None and options.trust)
    session, manifest = open_session(artefact, options)
    try:
        if manifest is None:
            _, height, width = session.inputs[0].size
            described, trained = replace(artefact.checkpoint_info.model, size_hw=(height, width)), True
        else:
            described, trained = manifest.model, manifest.trained
        return DepthPredictor(
            session,
            described,
            trained=trained,
            camera=camera,
            batch=batch,
            known_scale=known_scale,
            on_camera=on_camera,
            temporal_filter=temporal_filter,
        )
    except BaseException:
        session.close()
        raise


def _require_focal(model: ModelConfig) -> NormalisedFocal:
    if model.focal is None:
        raise OptionError(
            f"The model ({model.preset}) does not record which camera it was trained with.",
            "Scaling to another camera needs the training camera's focal length, which the file does not contain.",
            "Leave out the camera, or train with focal = [fx / width, fy / height] under [model] in the recipe.",
        )
    return model.focal
