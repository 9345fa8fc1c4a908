"""CSI cameras of a Jetson, through NVIDIA's GStreamer source. Not yet tested on hardware."""

from __future__ import annotations

import importlib
from typing import Any

import cv2
import numpy as np

from mirrordepth_edge.errors import InputError, MissingError, OptionError
from mirrordepth_edge.imaging.preprocess import Frame
from mirrordepth_edge.machine.device import parse_gstreamer
from mirrordepth_edge.sources.cameras import DEFAULTS, CameraOptions
from mirrordepth_edge.sources.capture import READ_TIMEOUT_S, CaptureSource, open_capture
from mirrordepth_edge.sources.source import FrameSource

SIZE_HW = (720, 1280)
RATE_HZ = 30
CURE = "sudo systemctl restart nvargus-daemon; then try gst-launch-1.0 nvarguscamerasrc sensor-id={} ! fakesink"


def csi_pipeline(sensor: int, options: CameraOptions, sink: str) -> str:
    """Return the GStreamer pipeline of a camera (Jetson Linux Developer Guide, Accelerated GStreamer).

    Args:
        sensor: index of the camera, from 0.
        sink: the elements that receive BGRx frames (4 bytes per pixel) in CPU memory.

    Raises:
        OptionError: a pixel format is requested.
    """
    if options.pixel_format is not None:
        why = "The Jetson's image processor always delivers NV12."
        raise OptionError("--pixel-format does not apply to CSI cameras.", why, "Leave --pixel-format out.")
    height, width = options.size_hw or SIZE_HW
    exposure_ns = round((options.exposure_ms or 0) * 1e6)
    locked = f' exposuretimerange="{exposure_ns} {exposure_ns}"' if exposure_ns else ""
    return (
        f"nvarguscamerasrc sensor-id={sensor}{locked} ! "
        f"video/x-raw(memory:NVMM),width={width},height={height},format=NV12,framerate={_fraction(options.rate_hz)} ! "
        f"nvvidconv ! video/x-raw,format=BGRx ! {sink} drop=true max-buffers=1 sync=false"
    )


def _fraction(rate_hz: float | None) -> str:
    rate_hz = rate_hz or RATE_HZ
    return f"{rate_hz:.0f}/1" if float(rate_hz).is_integer() else f"{round(rate_hz * 1000)}/1000"


def open_csi(sensor: int = 0, options: CameraOptions = DEFAULTS) -> FrameSource:
    """Open a CSI camera through OpenCV if it was built with GStreamer, otherwise through PyGObject.

    Raises:
        InputError: the camera does not start.
        MissingError: neither is available.
        OptionError: a pixel format is requested.
    """
    name = f"CSI camera {sensor}"
    if parse_gstreamer(cv2.getBuildInformation()):
        # Without timeouts, which OpenCV 4.5 of JetPack 5 rejects; its default is 30 s.
        capture = open_capture(
            csi_pipeline(sensor, options, "videoconvert ! video/x-raw,format=BGR ! appsink"), cv2.CAP_GSTREAMER
        )
        if capture is None:
            raise InputError(
                f"{name} does not start.", "It is missing, in use, or does not support this mode.", CURE.format(sensor)
            )
        return CaptureSource(capture, name)
    try:
        gi = importlib.import_module("gi")
        gi.require_version("Gst", "1.0")
        gst = importlib.import_module("gi.repository.Gst")
    except (ImportError, ValueError) as error:
        raise MissingError(
            f"{name} needs GStreamer.",
            f"This OpenCV was built without GStreamer, as the one from pip, and PyGObject does not work: {error}.",
            "sudo apt install python3-gi gir1.2-gst-plugins-base-1.0 and use a venv made with --system-site-packages; "
            "or pip uninstall opencv-python, so that JetPack's OpenCV is used, which has GStreamer.",
        ) from error
    return GstSource(gst, csi_pipeline(sensor, options, "appsink name=sink"), name, CURE.format(sensor))


class GstSource(FrameSource):
    """A GStreamer pipeline that ends in an appsink named "sink" with BGRx frames.

    Args:
        gst: the module `gi.repository.Gst`.
        cure: the cure in error messages.

    Raises:
        InputError: the pipeline does not start.
    """

    live = True
    may_return = True

    def __init__(self, gst: Any, pipeline: str, name: str, cure: str) -> None:
        self.name = name
        self._gst, self._cure = gst, cure
        gst.init(None)
        try:
            self._pipeline = gst.parse_launch(pipeline)
        except Exception as error:  # GLib.Error: an element that is not installed
            raise InputError(f"{name} does not start.", str(error), cure) from error
        self._sink = self._pipeline.get_by_name("sink")
        if self._pipeline.set_state(gst.State.PLAYING) == gst.StateChangeReturn.FAILURE:
            self.close()
            raise InputError(f"{name} does not start.", "It is missing, in use, or does not support this mode.", cure)

    def read(self, out: Frame | None = None) -> Frame | None:
        sample = self._sink.emit("try-pull-sample", READ_TIMEOUT_S * self._gst.SECOND)
        if sample is None:
            raise InputError(f"{self.name} delivers no frames.", "It stopped, or never started.", self._cure)
        caps, buffer = sample.get_caps().get_structure(0), sample.get_buffer()
        ok, mapped = buffer.map(self._gst.MapFlags.READ)
        if not ok:
            raise InputError(f"{self.name} delivers no frames.", "A buffer cannot be read.", self._cure)
        try:
            bgrx = np.frombuffer(mapped.data, np.uint8).reshape(caps.get_value("height"), caps.get_value("width"), 4)
            return cv2.cvtColor(bgrx, cv2.COLOR_BGRA2RGB, dst=out)  # type: ignore[return-value]
        finally:
            buffer.unmap(mapped)

    def close(self) -> None:
        self._pipeline.set_state(self._gst.State.NULL)
