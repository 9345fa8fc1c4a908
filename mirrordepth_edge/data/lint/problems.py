"""The usual mistakes in pictures with depth, told from the facts of `data.check`: what, why, and what to type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mirrordepth_edge.data.lint.scan import MARKER, DatasetReport, DepthStatistics
from mirrordepth_edge.errors import InputError

SCALES = {
    1000.0: "millimetres, as most cameras write",
    256.0: "as KITTI",
    5000.0: "as TUM RGB-D",
    10000.0: "tenths of a millimetre",
    4000.0: "as RealSense L515",
    100.0: "centimetres",
    1.0: "whole metres",
}
"""Units per metre in which depth is stored, and by whom; the most common first."""
POSSIBLE_MEDIAN_M = 0.2, 60.0
ROOM_MEDIAN_M, ROOM_FAR_M = (0.5, 10.0), (2.0, 20.0)
"""Of half and of 99 % of the pixels, in rooms."""
KITTI_SIZES_HW = {(375, 1242), (376, 1241), (370, 1226), (370, 1224), (374, 1238), (352, 1216)}
"""Of KITTI's five days of recording, and of its depth benchmark; no other data set is known to have them."""
KITTI_MEDIAN_M = 4.0, 45.0
MIN_MARKER_SHARE = 0.001
"""Share of all pixels."""
SATURATED = 0.05
"""Share of measured pixels."""
DENSE, INFILLED = 0.5, 0.995
"""Share of a picture's pixels that have depth."""
EIGHT_BITS = 256


@dataclass(frozen=True, kw_only=True)
class DatasetProblem:
    """One mistake, or one thing to know."""

    kind: str
    wrong: bool
    """Training on the data as it is goes wrong; otherwise only a note."""
    what: str
    why: str
    cure: str


def find_problems(report: DatasetReport) -> tuple[DatasetProblem, ...]:
    """What a user should know before training, what makes training wrong first."""
    findings = [finding for rule in RULES for finding in rule(report)]
    return tuple(sorted(findings, key=lambda finding: not finding.wrong))


def refuse_problems(name: str, findings: Sequence[DatasetProblem]) -> None:
    """Nothing, where a data set can be trained on.

    Args:
        name: of the data set, as the user knows it.

    Raises:
        InputError: something is wrong; the cure is the first thing to do.
    """
    if wrong := [finding for finding in findings if finding.wrong]:
        count = "One thing" if len(wrong) == 1 else f"{len(wrong)} things"
        raise InputError(f"{count} in {name} would make training go wrong.", wrong[0].what, wrong[0].cure)


def _swapped(report: DatasetReport) -> Iterator[DatasetProblem]:
    if some := [picture for picture in report.unusable if picture.swapped]:
        yield DatasetProblem(
            kind="swapped",
            wrong=True,
            what=f"{len(some)} of {report.looked_at} pictures have depth with width and height swapped, such as "
            f"{some[0].name}.",
            why=f"{some[0].reason} Photos are turned upright by their EXIF tag, which depth files do not have; or an "
            "array was saved as columns by rows.",
            cure="Turn the depth (cv2.rotate) or transpose it (depth.T), whichever fits the picture, and save it.",
        )


def _unusable(report: DatasetReport) -> Iterator[DatasetProblem]:
    if some := [picture for picture in report.unusable if not picture.swapped]:
        yield DatasetProblem(
            kind="unusable",
            wrong=True,
            what=f"{len(some)} of {report.looked_at} pictures cannot be used, such as {some[0].name}.",
            why=some[0].reason,
            cure="Repair or remove them; --json check.json lists every one with its reason.",
        )


def _no_depth(report: DatasetReport) -> Iterator[DatasetProblem]:
    if some := report.without_depth:
        everywhere = report.depths is None
        yield DatasetProblem(
            kind="no-depth",
            wrong=everywhere,
            what="There is no depth in any picture."
            if everywhere
            else f"{len(some)} of {report.looked_at} pictures have no depth at all, such as {some[0]}.",
            why="Nothing in them was measured (0 says so), and from nothing, nothing can be learnt.",
            cure="Look at a depth file: is it the right one?" if everywhere else "Remove them, with their depth.",
        )


def _marker(report: DatasetReport) -> Iterator[DatasetProblem]:
    depths = report.depths
    if depths and depths.units_per_metre and depths.marker_share >= MIN_MARKER_SHARE:
        yield DatasetProblem(
            kind="marker",
            wrong=True,
            what=f"{depths.marker_share:.1%} of all pixels have the depth {MARKER}, the largest that 16 bits hold.",
            why="Some cameras mark pixels without a measurement so; here 0 does, and these would be learnt as "
            f"{MARKER / depths.units_per_metre:g} m. The other figures leave them out.",
            cure=f"Save the depth files with 0 there: depth[depth == {MARKER}] = 0",
        )


def _saturated(report: DatasetReport) -> Iterator[DatasetProblem]:
    depths = report.depths
    if depths and depths.share_at_largest >= SATURATED:
        yield DatasetProblem(
            kind="saturated",
            wrong=True,
            what=f"{depths.share_at_largest:.1%} of the depth is exactly {depths.largest_m:g} m, and none is farther.",
            why="That is no measurement but 'farther than this' or 'not measured', written as a distance; "
            "it would be learnt as one.",
            cure=f"Save the depth files with 0 there: depth_m[depth_m >= {depths.largest_m:g}] = 0",
        )


def _scale(report: DatasetReport) -> Iterator[DatasetProblem]:
    depths = report.depths
    if depths is None:
        return
    median_m, far_m = depths.percentiles_m[50], depths.percentiles_m[99]
    near_or_far = f"the median of the depth is {_metres(median_m)}, and 99 % is nearer than {_metres(far_m)}"
    likely, why = _likely_scales(depths), _read_with(depths)
    cure = f"--units-per-metre {likely[0]:g}" if likely else "Find out in which unit depth is stored, and convert it."
    if not POSSIBLE_MEDIAN_M[0] <= median_m <= POSSIBLE_MEDIAN_M[1]:
        yield DatasetProblem(kind="scale", wrong=True, what=f"The scale is wrong: {near_or_far}.", why=why, cure=cure)
    elif _looks_like_kitti(report, depths):
        yield DatasetProblem(
            kind="scale",
            wrong=True,
            what=f"The scale is wrong: the pictures have KITTI's size, but {near_or_far}.",
            why=_read_with(depths, [256.0]),
            cure="--units-per-metre 256",
        )
    elif likely and not _in_a_room(median_m, far_m) and (far_m < ROOM_FAR_M[0] or report.valid_share > DENSE):
        yield DatasetProblem(
            kind="scale",
            wrong=False,
            what=f"For rooms the scale would be wrong: {near_or_far}.",
            why=why,
            cure=f"If these are rooms: {cure}",
        )


def _read_with(depths: DepthStatistics, others: Sequence[float] | None = None) -> str:
    """How the depth was read, and what other units would make of it."""
    units, median_m = depths.units_per_metre, depths.percentiles_m[50]
    if units is None:
        return "It is stored in metres, or so it was read."
    others = _likely_scales(depths) if others is None else others
    instead = "".join(
        f"; {scale:g} ({SCALES[scale]}) would make it {_metres(median_m * units / scale)}" for scale in others
    )
    return f"Read with {units:g} units a metre, the median is {_metres(median_m)}{instead}."


def _metres(depth_m: float) -> str:
    """Two digits, without a power of ten as long as may be, and the unit."""
    return f"{float(f'{depth_m:.2g}'):g} m"


def _likely_scales(depths: DepthStatistics) -> list[float]:
    """At most three other units per metre that would make these rooms, the most common first."""
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
    return KITTI_MEDIAN_M[0] <= depths.percentiles_m[50] * (units or 1) / 256 <= KITTI_MEDIAN_M[1]


def _registration(report: DatasetReport) -> Iterator[DatasetProblem]:
    found = report.registration
    if found.verdict == "nowhere":
        yield DatasetProblem(
            kind="mixed-up",
            wrong=False,
            what="The edges of the depth fit those of the pictures nowhere: are the pairs mixed up?",
            why=f"In {found.pictures} pictures they correlate {found.correlation:.2f} at the best of all shifts and "
            "flips; registered pairs of rooms reach 0.1 to 0.3.",
            cure="Look at them: --sheet check.png",
        )
    if found.verdict != "unregistered":
        return
    right, down = found.shift_px(report.sizes[0][0])
    moves = [f"{abs(right)} pixels {'right' if right > 0 else 'left'}"] if right else []
    moves += [f"{abs(down)} pixels {'down' if down > 0 else 'up'}"] if down else []
    moved = f"moved {' and '.join(moves)}" if moves else ""
    flipped = {"mirrored": "depth[:, ::-1]", "upside down": "depth[::-1]", "turned by half": "depth[::-1, ::-1]"}
    pose = "" if found.pose == "as it is" else found.pose
    yield DatasetProblem(
        kind="unregistered",
        wrong=True,
        what=f"The depth is not registered to the pictures: it fits best {' and '.join(filter(None, (pose, moved)))}.",
        why=f"The edges of both then correlate {found.correlation:.2f}, as they are {found.correlation_as_is:.2f}, "
        f"in {found.pictures} pictures.",
        cure=f"Flip the depth files ({flipped[found.pose]}) and check again."
        if found.pose in flipped
        else "Register depth to the colour camera: record it aligned to colour (RealSense: rs.align, ROS: "
        "depth_registered), or warp it by the calibration of both cameras.",
    )


def _infilled(report: DatasetReport) -> Iterator[DatasetProblem]:
    depths = report.depths
    if depths and report.valid_share > INFILLED and depths.percentiles_m[99] < ROOM_FAR_M[1]:
        yield DatasetProblem(
            kind="in-filled",
            wrong=False,
            what=f"{report.valid_share:.1%} of all pixels have depth: rendered, or in-filled rather than measured.",
            why="Cameras leave holes at edges, on glass and on black. What software puts there is a guess, and errors "
            "on in-filled depth do not compare with those on raw depth.",
            cure="Leave rendered depth as it is; else use the raw one where there is one (NYU: rawDepths).",
        )


def _quantised(report: DatasetReport) -> Iterator[DatasetProblem]:
    depths = report.depths
    if depths and depths.step_m:
        step_mm = 1000 * depths.step_m
        bits = "; so few mean that it went through 8 bits" if depths.values <= EIGHT_BITS else ""
        yield DatasetProblem(
            kind="quantised",
            wrong=False,
            what=f"The depth comes in steps of {step_mm:.0f} mm.",
            why=f"A picture has {depths.values:.0f} different values{bits}. Each is off by up to {step_mm / 2:.0f} mm, "
            "near and far alike.",
            cure="Use the 16-bit depth as it was recorded, if it is to be had.",
        )


def _blank(report: DatasetReport) -> Iterator[DatasetProblem]:
    if some := report.blank:
        yield DatasetProblem(
            kind="blank",
            wrong=False,
            what=f"{len(some)} of {report.looked_at} pictures are black or of one colour, such as {some[0]}.",
            why="A covered lens, or a camera that had just started; from nothing, depth cannot be learnt.",
            cure="Remove them, with their depth.",
        )


def _copies(report: DatasetReport) -> Iterator[DatasetProblem]:
    if some := report.copies:
        yield DatasetProblem(
            kind="copies",
            wrong=False,
            what=f"{len(some)} of {report.looked_at} pictures are copies of others, such as "
            f"{some[0][0]} of {some[0][1]}.",
            why="They count double, and between training and validation they make errors look smaller than they are.",
            cure="Keep one of each; --json check.json lists them.",
        )


def _sizes(report: DatasetReport) -> Iterator[DatasetProblem]:
    if len(report.sizes) > 1:
        yield DatasetProblem(
            kind="sizes",
            wrong=False,
            what=f"The pictures have {len(report.sizes)} different sizes.",
            why="All are stretched to the network's size: other proportions mean other distortions, and other cameras "
            "other focal lengths, which metric depth depends on.",
            cure="Keep it in mind; nothing need be done if one camera took them all.",
        )


RULES = (
    _swapped,
    _unusable,
    _no_depth,
    _marker,
    _saturated,
    _scale,
    _registration,
    _infilled,
    _quantised,
    _blank,
    _copies,
    _sizes,
)
