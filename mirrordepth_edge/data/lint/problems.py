"""Rules that find common problems of RGB-D data sets in the result of a scan, with cause and cure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mirrordepth_edge.data.lint.scan import MARKER, DatasetReport, DepthStatistics
from mirrordepth_edge.errors import InputError

SCALES = {
    1000.0: "millimetres, most cameras",
    256.0: "KITTI",
    5000.0: "TUM RGB-D",
    10000.0: "tenths of a millimetre",
    4000.0: "RealSense L515",
    100.0: "centimetres",
    1.0: "whole metres",
}
"""Common units per metre and who uses them; most common first."""
POSSIBLE_MEDIAN_M = 0.2, 60.0
ROOM_MEDIAN_M, ROOM_FAR_M = (0.5, 10.0), (2.0, 20.0)
"""Ranges of the median and the 99th percentile in rooms."""
KITTI_SIZES_HW = {(375, 1242), (376, 1241), (370, 1226), (370, 1224), (374, 1238), (352, 1216)}
"""Image sizes of KITTI's five recording days and of its depth benchmark; no other known data set has them."""
KITTI_MEDIAN_M = 4.0, 45.0
MIN_MARKER_SHARE = 0.001
"""Share of all pixels."""
SATURATED = 0.05
"""Share of measured pixels."""
DENSE, INFILLED = 0.5, 0.995
"""Shares of an image's pixels with depth."""
EIGHT_BITS = 256


@dataclass(frozen=True, kw_only=True)
class DatasetProblem:
    """A problem of a data set, with cause and cure."""

    kind: str
    wrong: bool
    """True if training on the data would fail or learn wrong depth; False for a note."""
    what: str
    why: str
    cure: str


def find_problems(report: DatasetReport) -> tuple[DatasetProblem, ...]:
    """Apply all rules to a scanned data set; problems that break training come first."""
    depths = report.depths
    of_depth = (*_invalid_depth(depths), *_scale(report, depths), *_depth_quality(report, depths)) if depths else ()
    problems = *_unusable(report), *_no_depth(report), *of_depth, *_registration(report), *_images(report)
    return tuple(sorted(problems, key=lambda problem: not problem.wrong))


def refuse_problems(name: str, problems: Sequence[DatasetProblem]) -> None:
    """Raise if any problem breaks training.

    Args:
        name: name of the data set, for the message.
        problems: result of `find_problems`.

    Raises:
        InputError: describes the first problem.
    """
    if wrong := [problem for problem in problems if problem.wrong]:
        count = "1 problem" if len(wrong) == 1 else f"{len(wrong)} problems"
        raise InputError(f"{name} has {count} that would break training.", wrong[0].what, wrong[0].cure)


def _error(kind: str, what: str, why: str, cure: str) -> DatasetProblem:
    return DatasetProblem(kind=kind, wrong=True, what=what, why=why, cure=cure)


def _note(kind: str, what: str, why: str, cure: str) -> DatasetProblem:
    return DatasetProblem(kind=kind, wrong=False, what=what, why=why, cure=cure)


def _unusable(report: DatasetReport) -> Iterator[DatasetProblem]:
    if some := [image for image in report.unusable if image.swapped]:
        yield _error(
            "swapped",
            f"{len(some)} of {report.looked_at} images have depth with width and height swapped, such as "
            f"{some[0].name}.",
            why=f"{some[0].reason} Either images are rotated by their EXIF orientation, which depth files do not have, "
            "or the depth array was saved transposed.",
            cure="Rotate the depth (cv2.rotate) or transpose it (depth.T), whichever matches the image, and save it.",
        )
    if some := [image for image in report.unusable if not image.swapped]:
        what = f"{len(some)} of {report.looked_at} images cannot be used, such as {some[0].name}."
        cure = "Repair or remove them; --json check.json lists all with their reasons."
        yield _error("unusable", what, some[0].reason, cure)


def _no_depth(report: DatasetReport) -> Iterator[DatasetProblem]:
    why, some = "All of their depth is 0, which means not measured.", report.without_depth
    if some and report.depths is None:
        yield _error("no-depth", "No image has depth.", why, "Check the depth files.")
    elif some:
        what = f"{len(some)} of {report.looked_at} images have no depth at all, such as {some[0]}."
        yield _note("no-depth", what, why, "Remove them and their depth.")


def _invalid_depth(depths: DepthStatistics) -> Iterator[DatasetProblem]:
    if depths.units_per_metre and depths.marker_share >= MIN_MARKER_SHARE:
        yield _error(
            "marker",
            f"{depths.marker_share:.1%} of all pixels have depth {MARKER}, the largest 16-bit value.",
            why="Some cameras mark pixels without a measurement this way. Training expects 0 and would learn "
            f"{MARKER / depths.units_per_metre:g} m. The other statistics ignore these pixels.",
            cure=f"Set them to 0 in the depth files: depth[depth == {MARKER}] = 0",
        )
    if depths.share_at_largest >= SATURATED:
        what = f"{depths.share_at_largest:.1%} of the depth is exactly {depths.largest_m:g} m, the largest value."
        why = "This is a saturated or invalid value stored as a distance. Training would learn it as depth."
        cure = f"Set it to 0 in the depth files: depth_m[depth_m >= {depths.largest_m:g}] = 0"
        yield _error("saturated", what, why, cure)


def _scale(report: DatasetReport, depths: DepthStatistics) -> Iterator[DatasetProblem]:
    median_m, far_m = depths.percentiles_m[50], depths.percentiles_m[99]
    distances = f"median depth is {_metres(median_m)}, the 99th percentile {_metres(far_m)}"
    likely, why = _likely_scales(depths), _read_with(depths)
    cure = f"--units-per-metre {likely[0]:g}" if likely else "Find out the unit of the depth files and convert them."
    if not POSSIBLE_MEDIAN_M[0] <= median_m <= POSSIBLE_MEDIAN_M[1]:
        yield _error("scale", f"The depth scale is wrong: {distances}.", why, cure)
    elif _looks_like_kitti(report, depths):
        what = f"The depth scale is wrong: the images have KITTI's size, but {distances}."
        yield _error("scale", what, _read_with(depths, [256.0]), "--units-per-metre 256")
    # Sparse depth comes from LiDAR, usually outdoors, where rooms are no yardstick.
    elif likely and not _in_a_room(median_m, far_m) and (far_m < ROOM_FAR_M[0] or report.valid_share > DENSE):
        what = f"The depth scale is implausible for rooms: {distances}."
        yield _note("scale", what, why, f"If the images show rooms: {cure}")


def _depth_quality(report: DatasetReport, depths: DepthStatistics) -> Iterator[DatasetProblem]:
    if report.valid_share > INFILLED and depths.percentiles_m[99] < ROOM_FAR_M[1]:
        yield _note(
            "in-filled",
            f"{report.valid_share:.1%} of all pixels have depth: it is rendered or in-filled, not raw.",
            why="Depth cameras leave holes at edges, on glass and on black. In-filled values are estimates, and errors "
            "on in-filled depth are not comparable with errors on raw depth.",
            cure="Use raw depth if there is any (NYU: rawDepths). Rendered depth is fine.",
        )
    if depths.step_m:
        step_mm = 1000 * depths.step_m
        bits = ", so it was stored with 8 bits" if depths.values <= EIGHT_BITS else ""
        yield _note(
            "quantised",
            f"Depth is quantised in steps of {step_mm:.0f} mm.",
            why=f"An image has {depths.values:.0f} distinct values{bits}. The error is up to {step_mm / 2:.0f} mm at "
            "any distance.",
            cure="Use the recorded 16-bit depth, if available.",
        )


def _registration(report: DatasetReport) -> Iterator[DatasetProblem]:
    registration = report.registration
    if registration.verdict == "nowhere":
        yield _note(
            "mixed-up",
            "Edges of depth and images do not match at any shift: are the pairs mixed up?",
            why=f"Over {registration.pictures} images their correlation is {registration.correlation:.2f} at the best "
            "shift and flip; registered pairs of rooms reach 0.1 to 0.3.",
            cure="Inspect the pairs: --sheet check.png",
        )
    if registration.verdict != "unregistered":
        return
    right, down = registration.shift_px(report.sizes[0][0])
    moves = [f"{abs(right)} pixels {'right' if right > 0 else 'left'}"] if right else []
    moves += [f"{abs(down)} pixels {'down' if down > 0 else 'up'}"] if down else []
    fits = [f"shifted {' and '.join(moves)}"] if moves else []
    flipped = {"mirrored": "depth[:, ::-1]", "upside down": "depth[::-1]", "turned by half": "depth[::-1, ::-1]"}
    if registration.pose != "as it is":
        fits.insert(0, "rotated by 180°" if registration.pose == "turned by half" else registration.pose)
    yield _error(
        "unregistered",
        f"Depth is not registered to the images: it fits best {' and '.join(fits)}.",
        why=f"Over {registration.pictures} images, edge correlation is then {registration.correlation:.2f} instead of "
        f"{registration.correlation_as_is:.2f}.",
        cure=f"Flip the depth files ({flipped[registration.pose]}) and check again."
        if registration.pose in flipped
        else "Register depth to the colour camera: record it aligned to colour (RealSense: rs.align, ROS: "
        "depth_registered), or reproject it with the calibration of both cameras.",
    )


def _images(report: DatasetReport) -> Iterator[DatasetProblem]:
    if some := report.blank:
        what = f"{len(some)} of {report.looked_at} images are black or of a single colour, such as {some[0]}."
        why = "The lens was covered, or the camera had just started. They hold no information to learn from."
        yield _note("blank", what, why, "Remove them and their depth.")
    if copies := report.copies:
        what = f"{len(copies)} of {report.looked_at} images are copies of others, such as {' of '.join(copies[0])}."
        why = "They count twice in training. Copies in both training and validation make errors look too small."
        yield _note("copies", what, why, "Keep one of each; --json check.json lists all.")
    if len(report.sizes) > 1:
        yield _note(
            "sizes",
            f"The images have {len(report.sizes)} different sizes.",
            why="All are resized to the network size. Different aspect ratios are distorted differently, and different "
            "cameras have different focal lengths, on which metric depth depends.",
            cure="No action is needed if they come from one camera.",
        )


def _read_with(depths: DepthStatistics, others: Sequence[float] | None = None) -> str:
    """Describe the unit that was used to read depth, and the median that others would give."""
    units, median_m = depths.units_per_metre, depths.percentiles_m[50]
    if units is None:
        return "It was read as metres."
    others = _likely_scales(depths) if others is None else others
    instead = "".join(
        f"; with {scale:g} ({SCALES[scale]}) it would be {_metres(median_m * units / scale)}" for scale in others
    )
    return f"With {units:g} units per metre, the median is {_metres(median_m)}{instead}."


def _metres(depth_m: float) -> str:
    """Format with two significant digits and the unit."""
    return f"{float(f'{depth_m:.2g}'):g} m"


def _likely_scales(depths: DepthStatistics) -> list[float]:
    """At most three other units per metre for which depth is plausible for rooms, most common first."""
    units = depths.units_per_metre
    median_m, far_m = depths.percentiles_m[50], depths.percentiles_m[99]
    if units is None:
        return []
    others = [scale for scale in SCALES if scale != units]
    return [scale for scale in others if _in_a_room(median_m * units / scale, far_m * units / scale)][:3]


def _in_a_room(median_m: float, far_m: float) -> bool:
    return ROOM_MEDIAN_M[0] <= median_m <= ROOM_MEDIAN_M[1] and ROOM_FAR_M[0] <= far_m <= ROOM_FAR_M[1]


def _looks_like_kitti(report: DatasetReport, depths: DepthStatistics) -> bool:
    units = depths.units_per_metre
    if units in (None, 256.0) or report.sizes[0][0] not in KITTI_SIZES_HW:
        return False
    # The size alone is no proof: depth must also become plausible.
    return KITTI_MEDIAN_M[0] <= depths.percentiles_m[50] * (units or 1) / 256 <= KITTI_MEDIAN_M[1]
