"""Cameras, and what metres learnt through one lens are worth through another.

A network that was trained with one camera is a function of appearance. Through a lens k times longer,
in pixels of the network's input, the same scene looks k times larger, so the network answers with
depths k times too small: metres are its answer times k. Training turns this round (`data.augment.zoom`).

Frames are stretched to the network's size, so what counts is focal length over picture size. That knows
crops, too: a part of a picture, seen at full size, is a picture through a longer lens.

Lenses are pinholes here: distortion and the principal point, which calibrations also give, are left aside.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from mirrordepth_edge.config import NormalisedFocal, SizeHW
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.support.files import existing_file

ASPECT_TOLERANCE = 0.01
"""How much wider or higher than calibrated frames may be: modes are rounded, as 848x480 is to 16:9."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera and the size of its pictures.

    Raises:
        OptionError: there is no such camera.
    """

    fx_px: float
    fy_px: float
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        for focal_px in (self.fx_px, self.fy_px):
            _check_focal(focal_px)
        if self.width_px < 1 or self.height_px < 1:
            raise OptionError(
                f"A picture of {self.width_px}x{self.height_px} pixels is none.",
                "A camera's picture has a width and a height.",
                "Give them in pixels, such as 640 and 480.",
            )

    @classmethod
    def from_focal(cls, focal_px: float, size_hw: SizeHW, fy_px: float | None = None) -> Camera:
        """A camera of this focal length; of square pixels where `fy_px` is not given."""
        height, width = size_hw
        return cls(fx_px=focal_px, fy_px=focal_px if fy_px is None else fy_px, width_px=width, height_px=height)

    @classmethod
    def from_fov(cls, fov_deg: float, size_hw: SizeHW) -> Camera:
        """A camera of square pixels that sees `fov_deg` from left to right: fx = W / 2 / tan(fov / 2).

        Raises:
            OptionError: no pinhole camera sees so much or so little.
        """
        _check_fov(fov_deg)
        return cls.from_focal(size_hw[1] / 2 / math.tan(math.radians(fov_deg) / 2), size_hw)

    @property
    def focal(self) -> NormalisedFocal:
        """fx/W and fy/H, which resizing and stretching leave as they are."""
        return self.fx_px / self.width_px, self.fy_px / self.height_px

    @property
    def fov_deg(self) -> float:
        """Horizontal field of view, from outer edge to outer edge."""
        return math.degrees(2 * math.atan(self.width_px / 2 / self.fx_px))

    def cropped(self, size_hw: SizeHW) -> Camera:
        """The camera whose pictures are cut to `size_hw`, wherever the cut lies."""
        return replace(self, height_px=size_hw[0], width_px=size_hw[1])

    def at(self, size_hw: SizeHW) -> Camera:
        """This camera where its frames come in another size: the whole picture, scaled.

        Raises:
            OptionError: frames of another shape show another part of the scene.
        """
        height, width = size_hw
        across, down = width / self.width_px, height / self.height_px
        if abs(across / down - 1) > ASPECT_TOLERANCE:
            raise OptionError(
                f"Frames of {width}x{height} are not those of a camera calibrated at {self.width_px}x{self.height_px}.",
                "A picture of another shape was cropped or turned, which makes it another camera's.",
                "Calibrate the camera in this mode, or give what these frames have: --focal-px F or --fov-deg D",
            )
        return Camera(fx_px=self.fx_px * across, fy_px=self.fy_px * down, width_px=width, height_px=height)

    def __str__(self) -> str:
        return f"fx {self.fx_px:.1f} px of {self.width_px} ({self.fov_deg:.0f}° wide)"


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A camera of square pixels whose frames' size is not known yet; one of the two is given.

    Raises:
        OptionError: there is no such lens.
    """

    focal_px: float | None = None
    """In pixels of the frames as they come, whatever their size."""
    fov_deg: float | None = None
    """From left to right."""

    def __post_init__(self) -> None:
        if self.focal_px is not None and self.fov_deg is None:
            _check_focal(self.focal_px)
        elif self.fov_deg is not None and self.focal_px is None:
            _check_fov(self.fov_deg)
        else:
            raise OptionError(
                "A lens is told by its focal length or by its field of view.",
                "Both were given, or neither.",
                "Give one of them: --focal-px F or --fov-deg D",
            )

    def at(self, size_hw: SizeHW) -> Camera:
        """The camera, now that its frames' size is known."""
        if self.fov_deg is not None:
            return Camera.from_fov(self.fov_deg, size_hw)
        assert self.focal_px is not None
        return Camera.from_focal(self.focal_px, size_hw)

    def __str__(self) -> str:
        return f"fx {self.focal_px:.1f} px" if self.fov_deg is None else f"{self.fov_deg:g}° wide"


def camera_of(focal_px: float | None, fov_deg: float | None, calibration: Path | None) -> Camera | Lens | None:
    """The camera that a command line describes; None for the one the model was trained with.

    Raises:
        OptionError: it is described in several ways, or cannot be.
        InputError: the calibration cannot be used.
    """
    told = {"--focal-px": focal_px, "--fov-deg": fov_deg, "--calibration": calibration}
    given = [option for option, value in told.items() if value is not None]
    if len(given) > 1:
        raise OptionError(
            f"{' and '.join(given)} exclude one another.", "Each of them describes the camera.", f"{given[-1]} alone"
        )
    if calibration is not None:
        return read_camera(calibration)
    return Lens(focal_px=focal_px, fov_deg=fov_deg) if given else None


def scale_for(trained: NormalisedFocal, camera: Camera) -> float:
    """What to multiply metres by that come from `camera`'s frames.

    k = focal length over picture size, here / in training. Where both axes agree on k, the camera is
    the training camera with another lens and k is exact. Where they do not, frames are stretched
    otherwise than in training, which no single factor undoes; k is the geometric mean of the two.

    Args:
        trained: fx/W and fy/H of the training camera (`ModelConfig.focal`).
    """
    across, down = (here / there for here, there in zip(camera.focal, trained, strict=True))
    return math.sqrt(across * down)


NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
# A key as YAML, XML or JSON writes it, at the start of a line or of a pair, so not in a comment.
KEY = r'(?:^|[{{,>])\s*["<]?{name}'
ENDS = r'["\s]*[:>][\s\[]*'
# Nothing but the matrix's own header lies between its name and its values; any other key has a "_".
MATRIX = re.compile(
    KEY.format(name="camera_matrix") + rf"(?:type_id|[^_])*?\bdata{ENDS}([-+.\de,\s]+)", re.IGNORECASE | re.MULTILINE
)


def read_camera(path: Path) -> Camera:
    """The camera of a calibration file; its distortion is not read.

    Takes OpenCV's YAML, XML and JSON and ROS's camera_info YAML (image_width, image_height and
    camera_matrix, which is that of the raw picture, not of the rectified one), and `camera.json` as
    `mde data render` writes it (width, height, fx, fy).

    Raises:
        InputError: the file is not there or empty, or holds no camera, or one that cannot be.
    """
    text = existing_file(path, "calibration").read_text(encoding="utf-8", errors="replace")
    width, height = _number(text, "(?:image_)?width"), _number(text, "(?:image_)?height")
    found = MATRIX.search(text)
    matrix = [float(value) for value in re.findall(NUMBER, found[1], re.IGNORECASE)] if found else []
    fx, fy = (matrix[0], matrix[4]) if len(matrix) == 9 else (_number(text, "fx"), _number(text, "fy"))
    if width is None or height is None or fx is None or fy is None:
        focal, size = fx is None or fy is None, width is None or height is None
        raise InputError(
            f"{path} holds no camera.",
            f"It has no {' and no '.join(['camera_matrix of 3x3'] * focal + ['image_width and image_height'] * size)}.",
            "Pass what OpenCV's or ROS's calibration wrote, or instead of it --focal-px F or --fov-deg D",
        )
    try:
        return Camera(fx_px=fx, fy_px=fy, width_px=int(width), height_px=int(height))
    except OptionError as error:
        raise InputError(f"{path} holds no camera that can be.", error.what, "Calibrate it again.") from error


def _number(text: str, name: str) -> float | None:
    """The value of the first key of that name (a pattern)."""
    found = re.search(KEY.format(name=name) + ENDS + f"({NUMBER})", text, re.IGNORECASE | re.MULTILINE)
    return float(found[1]) if found else None


def _check_focal(focal_px: float) -> None:
    if not (math.isfinite(focal_px) and focal_px > 0):
        raise OptionError(
            f"{focal_px:g} px is no focal length.",
            "It is a number of pixels above 0.",
            "Give the calibration's, for frames of the size they come in: --focal-px 600",
        )


def _check_fov(fov_deg: float) -> None:
    if not 0 < fov_deg < 180:
        raise OptionError(
            f"{fov_deg:g} degrees are no field of view.",
            "From left to right a pinhole camera sees more than 0 and less than 180 degrees.",
            "Give what the camera's data sheet says: --fov-deg 70",
        )
