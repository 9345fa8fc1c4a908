"""Pinhole cameras, and how to convert metric depth from the training camera to another one.

A network learns depth from how large things look through the training camera. Through a lens k times longer, in pixels
of the network's input, the same scene looks k times larger, and the predicted depth is k times too small: it must be
multiplied by k. Training uses the inverse of this (`data.augment.zoom`).

Frames are stretched to the network's size, so what counts is the focal length divided by the image size. The same rule
covers crops: part of an image, seen at full size, is an image through a longer lens.

Lens distortion is ignored.
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
"""How far a frame's aspect ratio may differ from the calibrated one: camera modes are rounded, as 848x480 for 16:9."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera with a known image size.

    Raises:
        OptionError: a focal length or the image size is not positive.
    """

    fx_px: float
    fy_px: float
    width_px: int
    height_px: int
    principal_point_px: tuple[float, float] | None = None
    """Where the optical axis meets the image, (x, y), in pixels from the centre of the first pixel; the centre of the
    image if None."""

    def __post_init__(self) -> None:
        for focal_px in (self.fx_px, self.fy_px):
            _check_focal(focal_px)
        if self.width_px < 1 or self.height_px < 1:
            raise OptionError(
                f"Image size {self.width_px}x{self.height_px} is not valid.",
                "Width and height of a camera's image must be at least 1 pixel.",
                "Give both in pixels, such as 640 and 480.",
            )

    @classmethod
    def from_focal(cls, focal_px: float, size_hw: SizeHW, fy_px: float | None = None) -> Camera:
        """Return a camera with this focal length; pixels are square unless `fy_px` is given."""
        height, width = size_hw
        return cls(fx_px=focal_px, fy_px=focal_px if fy_px is None else fy_px, width_px=width, height_px=height)

    @classmethod
    def from_fov(cls, fov_deg: float, size_hw: SizeHW) -> Camera:
        """Return a camera with square pixels and this horizontal field of view: fx = W / 2 / tan(fov / 2).

        Raises:
            OptionError: the field of view is not between 0 and 180 degrees.
        """
        _check_fov(fov_deg)
        return cls.from_focal(size_hw[1] / 2 / math.tan(math.radians(fov_deg) / 2), size_hw)

    @classmethod
    def from_normalised(cls, focal: NormalisedFocal, size_hw: SizeHW) -> Camera:
        """Return the camera with focal lengths fx/W and fy/H (`ModelConfig.focal`) at this image size."""
        return cls.from_focal(focal[0] * size_hw[1], size_hw, fy_px=focal[1] * size_hw[0])

    @property
    def size_hw(self) -> SizeHW:
        """Image height and width in pixels."""
        return self.height_px, self.width_px

    @property
    def cx_px(self) -> float:
        """Column of the principal point; the centre of the first pixel is 0."""
        return (self.width_px - 1) / 2 if self.principal_point_px is None else self.principal_point_px[0]

    @property
    def cy_px(self) -> float:
        """Row of the principal point; the centre of the first pixel is 0."""
        return (self.height_px - 1) / 2 if self.principal_point_px is None else self.principal_point_px[1]

    @property
    def focal(self) -> NormalisedFocal:
        """fx/W and fy/H, which do not change when the image is resized or stretched."""
        return self.fx_px / self.width_px, self.fy_px / self.height_px

    @property
    def fov_deg(self) -> float:
        """Horizontal field of view in degrees, between the outer edges of the image."""
        return math.degrees(2 * math.atan(self.width_px / 2 / self.fx_px))

    def cropped(self, size_hw: SizeHW) -> Camera:
        """Return the camera of a crop; its principal point is taken to be the centre of the crop."""
        return replace(self, height_px=size_hw[0], width_px=size_hw[1], principal_point_px=None)

    def at(self, size_hw: SizeHW) -> Camera:
        """Return the same camera for frames of another resolution and the same field of view.

        Raises:
            OptionError: the aspect ratio differs, so the frames show another part of the scene.
        """
        height, width = size_hw
        across, down = width / self.width_px, height / self.height_px
        if abs(across / down - 1) > ASPECT_TOLERANCE:
            raise OptionError(
                f"The frames are {width}x{height}, but the camera was calibrated at {self.width_px}x{self.height_px}.",
                "Frames with another aspect ratio were cropped or rotated, which needs another calibration.",
                "Calibrate the camera in this mode, or describe these frames: --focal-px F or --fov-deg D",
            )
        # Coordinates start at the centre of a pixel, but an image is scaled from its edge.
        centre = ((self.cx_px + 0.5) * across - 0.5, (self.cy_px + 0.5) * down - 0.5)
        return Camera(
            fx_px=self.fx_px * across,
            fy_px=self.fy_px * down,
            width_px=width,
            height_px=height,
            principal_point_px=None if self.principal_point_px is None else centre,
        )

    def __str__(self) -> str:
        return f"fx {self.fx_px:.1f} px of {self.width_px} ({self.fov_deg:.0f}° wide)"


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A camera with square pixels whose image size is not known yet. Give one of the two fields.

    Raises:
        OptionError: both fields or none are given, or the value is out of range.
    """

    focal_px: float | None = None
    """Focal length in pixels of the frames, whatever their size."""
    fov_deg: float | None = None
    """Horizontal field of view in degrees."""

    def __post_init__(self) -> None:
        if self.focal_px is not None and self.fov_deg is None:
            _check_focal(self.focal_px)
        elif self.fov_deg is not None and self.focal_px is None:
            _check_fov(self.fov_deg)
        else:
            raise OptionError(
                "A lens needs either a focal length or a field of view.",
                "Both were given, or neither.",
                "Give one of them: --focal-px F or --fov-deg D",
            )

    def at(self, size_hw: SizeHW) -> Camera:
        """Return the camera for frames of this size."""
        if self.fov_deg is not None:
            return Camera.from_fov(self.fov_deg, size_hw)
        assert self.focal_px is not None
        return Camera.from_focal(self.focal_px, size_hw)

    def __str__(self) -> str:
        return f"fx {self.focal_px:.1f} px" if self.fov_deg is None else f"{self.fov_deg:g}° wide"


def camera_of(focal_px: float | None, fov_deg: float | None, calibration: Path | None) -> Camera | Lens | None:
    """Return the camera that the command-line options describe; None means the training camera.

    Raises:
        OptionError: more than one option is given, or a value is out of range.
        InputError: the calibration cannot be used.
    """
    options = {"--focal-px": focal_px, "--fov-deg": fov_deg, "--calibration": calibration}
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1:
        raise OptionError(
            f"{' and '.join(given)} cannot be combined.", "Each of them describes the camera.", f"{given[-1]} alone"
        )
    if calibration is not None:
        return read_camera(calibration)
    return Lens(focal_px=focal_px, fov_deg=fov_deg) if given else None


def camera_at(camera: Camera | Lens | None, trained: NormalisedFocal | None, size_hw: SizeHW) -> Camera | None:
    """Return the camera for frames of this size.

    Args:
        camera: what the user described; None if the frames come from the training camera.
        trained: fx/W and fy/H of the training camera (`ModelConfig.focal`); None if unknown.

    Returns:
        The camera, or None if neither is known.

    Raises:
        OptionError: the frames' aspect ratio is not the camera's.
    """
    if camera is not None:
        return camera.at(size_hw)
    return None if trained is None else Camera.from_normalised(trained, size_hw)


def scale_for(trained: NormalisedFocal, camera: Camera) -> float:
    """Return the factor that converts depth predicted from `camera`'s frames to metres.

    k = normalised focal length of `camera` / of the training camera. If both axes give the same k, it is exact. If they
    do not, frames are stretched otherwise than in training, which no single factor corrects; k is then the geometric
    mean.

    Args:
        trained: fx/W and fy/H of the training camera (`ModelConfig.focal`).
    """
    across, down = (focal / other for focal, other in zip(camera.focal, trained, strict=True))
    return math.sqrt(across * down)


NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
# A key as YAML, XML or JSON writes it, at the start of a line or of a pair, so not in a comment.
KEY = r'(?:^|[{{,>])\s*["<]?{name}'
ENDS = r'["\s]*[:>][\s\[]*'
# Between the matrix's name and its values there is only its own header; any other key has a "_".
MATRIX = re.compile(
    KEY.format(name="camera_matrix") + rf"(?:type_id|[^_])*?\bdata{ENDS}([-+.\de,\s]+)", re.IGNORECASE | re.MULTILINE
)


def read_camera(path: Path) -> Camera:
    """Read focal lengths and image size from a calibration file. Distortion and principal point are ignored.

    Reads OpenCV's YAML, XML and JSON and ROS's camera_info YAML (image_width, image_height, and camera_matrix, which is
    that of the raw image, not of the rectified one), and `camera.json` as `mde data render` writes it (width, height,
    fx, fy).

    Raises:
        InputError: the file is missing or empty, or has no valid camera.
    """
    text = existing_file(path, "calibration").read_text(encoding="utf-8", errors="replace")
    width, height = _number(text, "(?:image_)?width"), _number(text, "(?:image_)?height")
    match = MATRIX.search(text)
    matrix = [float(value) for value in re.findall(NUMBER, match[1], re.IGNORECASE)] if match else []
    fx, fy = (matrix[0], matrix[4]) if len(matrix) == 9 else (_number(text, "fx"), _number(text, "fy"))
    if width is None or height is None or fx is None or fy is None:
        missing = ["camera_matrix of 3x3"] if fx is None or fy is None else []
        missing += ["image_width and image_height"] if width is None or height is None else []
        raise InputError(
            f"{path} holds no camera.",
            f"It has no {' and no '.join(missing)}.",
            "Pass a calibration from OpenCV or ROS, or use --focal-px F or --fov-deg D instead.",
        )
    try:
        return Camera(fx_px=fx, fy_px=fy, width_px=int(width), height_px=int(height))
    except OptionError as error:
        raise InputError(f"{path} holds no camera with valid values.", error.what, "Calibrate again.") from error


def _number(text: str, name: str) -> float | None:
    """Return the value of the first key with this name (a regular expression)."""
    match = re.search(KEY.format(name=name) + ENDS + f"({NUMBER})", text, re.IGNORECASE | re.MULTILINE)
    return float(match[1]) if match else None


def _check_focal(focal_px: float) -> None:
    if not (math.isfinite(focal_px) and focal_px > 0):
        raise OptionError(
            f"{focal_px:g} px is not a valid focal length.",
            "It must be greater than 0.",
            "Use the value from a calibration at the frames' resolution: --focal-px 600",
        )


def _check_fov(fov_deg: float) -> None:
    if not 0 < fov_deg < 180:
        raise OptionError(
            f"{fov_deg:g} degrees is not a valid field of view.",
            "The horizontal field of view of a pinhole camera is between 0 and 180 degrees.",
            "Use the value from the camera's data sheet: --fov-deg 70",
        )
