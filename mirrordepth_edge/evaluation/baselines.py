"""Published depth errors to set one's own beside, each with its source.

A figure is what its paper says, unless it is marked: derived from other published figures, or
measured by this project. Published protocols differ in details that papers do not always state, so
that a difference in the third digit says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mirrordepth_edge.config import DataKind
from mirrordepth_edge.data.choose import CONVENTIONS
from mirrordepth_edge.errors import OptionError
from mirrordepth_edge.evaluation.evaluate import Protocol

Origin = Literal["published", "derived", "measured"]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One method's errors on one data set; None where no figure is known."""

    name: str
    source: str
    """The paper: its arXiv number where it has one, else where it appeared."""
    abs_rel: float
    rmse: float | None = None
    """Metres."""
    delta1: float | None = None
    origin: Origin = "published"
    note: str = ""
    """What the origin leaves to be said; always there unless the figure is simply published."""


AUTY = "ICCV Workshops 2023"
CLIP2DEPTH = "arXiv 2402.03251"
SPACE_CLIP = "arXiv 2601.17657"

BASELINES: dict[DataKind, tuple[Baseline, ...]] = {
    "nyu": (
        Baseline(
            name="CLIP2Depth",
            source=CLIP2DEPTH,
            abs_rel=0.100,
            origin="derived",
            note='its abstract says "68.7 % below Auty et al.", whose 7 linear bins have 0.319',
        ),
        Baseline(name="SPACE-CLIP", source=SPACE_CLIP, abs_rel=0.104, rmse=0.385, delta1=0.896),
        Baseline(name="DORN", source="arXiv 1806.02446", abs_rel=0.115, rmse=0.509),
        Baseline(
            name="METER-XXS",
            source="arXiv 2403.08368",
            abs_rel=0.157,
            rmse=0.536,
            delta1=0.789,
            origin="measured",
            note="its released weights, run by this project on the 654 test pictures with in-filled depth of 8 bits",
        ),
        Baseline(name="PureCLIP-Depth", source="arXiv 2603.16238", abs_rel=0.201),
        Baseline(name="Auty et al., 256 log bins", source=AUTY, abs_rel=0.298, rmse=0.933, delta1=0.485),
        Baseline(name="Auty et al., 7 linear bins", source=AUTY, abs_rel=0.319, rmse=0.970, delta1=0.465),
        Baseline(name="Hu et al., few-shot", source="arXiv 2311.01034", abs_rel=0.347, rmse=1.049, delta1=0.428),
        Baseline(name="DepthCLIP, zero-shot", source="arXiv 2207.01077", abs_rel=0.388, rmse=1.167, delta1=0.394),
    ),
    "kitti": (
        Baseline(
            name="CLIP2Depth",
            source=CLIP2DEPTH,
            abs_rel=0.074,
            origin="derived",
            note='its abstract says "75.6 % below Auty et al.", whose 7 linear bins have 0.303',
        ),
        Baseline(name="SPACE-CLIP", source=SPACE_CLIP, abs_rel=0.090, rmse=3.845, delta1=0.909),
        Baseline(name="Auty et al., 7 linear bins", source=AUTY, abs_rel=0.303, rmse=6.322, delta1=0.550),
    ),
}
"""By data set, lowest AbsRel first."""


def baselines_of(kind: DataKind) -> tuple[Baseline, ...]:
    """Published errors on a kind of data set; none for a folder of one's own."""
    return BASELINES.get(kind, ())


def show_baselines(kind: DataKind, asked: bool | None) -> bool:
    """Whether to show published errors: as asked, else where there are some.

    Raises:
        OptionError: they are asked for where there are none.
    """
    if asked and not baselines_of(kind):
        raise OptionError(
            "--baselines has nothing to show for a folder of pictures.",
            "Published figures are of NYU Depth v2 and KITTI.",
            f"Leave it out, or say what the pictures are: {' or '.join(f'--data {kind}' for kind in BASELINES)}",
        )
    return bool(baselines_of(kind)) if asked is None else asked


def protocol_differences(kind: DataKind, protocol: Protocol) -> list[str]:
    """Why results by `protocol` do not compare with the published ones; empty where they do."""
    convention = CONVENTIONS[kind]
    found = []
    if protocol.crop != convention.crop:
        found.append(f"the crop is {protocol.crop}, not {convention.crop}")
    if protocol.limits_m[1] != convention.depth_limits_m[1]:
        found.append(f"depth counts to {protocol.limits_m[1]:g} m, not to {convention.depth_limits_m[1]:g} m")
    if protocol.align != "none":
        found.append(f"predictions are aligned to the truth ({protocol.align}), published ones are metric")
    return found
