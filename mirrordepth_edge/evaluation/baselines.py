"""Published depth errors for comparison, each with its source.

A value is the one reported in the paper unless `origin` says otherwise: derived from other published values,
or measured by this project. Protocols differ in details that papers do not always state, so differences in
the third digit are not significant.
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
    """Errors of one method on one data set; None if not reported."""

    name: str
    source: str
    """arXiv number of the paper, or the venue."""
    abs_rel: float
    rmse: float | None = None
    """Metres."""
    delta1: float | None = None
    origin: Origin = "published"
    note: str = ""
    """Explains a value whose origin is not `published`."""


AUTY = "ICCV Workshops 2023"
SPACE_CLIP = "arXiv 2601.17657"


def _clip2depth(abs_rel: float, percent_below: float, auty: float) -> Baseline:
    """Errors of CLIP2Depth, which are published only relative to Auty et al."""
    note = f'its abstract says "{percent_below} % below Auty et al.", whose 7 linear bins have {auty}'
    return Baseline(name="CLIP2Depth", source="arXiv 2402.03251", abs_rel=abs_rel, origin="derived", note=note)


BASELINES: dict[DataKind, tuple[Baseline, ...]] = {
    "nyu": (
        _clip2depth(abs_rel=0.100, percent_below=68.7, auty=0.319),
        Baseline(name="SPACE-CLIP", source=SPACE_CLIP, abs_rel=0.104, rmse=0.385, delta1=0.896),
        Baseline(name="DORN", source="arXiv 1806.02446", abs_rel=0.115, rmse=0.509),
        Baseline(
            name="METER-XXS",
            source="arXiv 2403.08368",
            abs_rel=0.157,
            rmse=0.536,
            delta1=0.789,
            origin="measured",
            note="its released weights, run by this project on the 654 test images with in-filled 8-bit depth",
        ),
        Baseline(name="PureCLIP-Depth", source="arXiv 2603.16238", abs_rel=0.201),
        Baseline(name="Auty et al., 256 log bins", source=AUTY, abs_rel=0.298, rmse=0.933, delta1=0.485),
        Baseline(name="Auty et al., 7 linear bins", source=AUTY, abs_rel=0.319, rmse=0.970, delta1=0.465),
        Baseline(name="Hu et al., few-shot", source="arXiv 2311.01034", abs_rel=0.347, rmse=1.049, delta1=0.428),
        Baseline(name="DepthCLIP, zero-shot", source="arXiv 2207.01077", abs_rel=0.388, rmse=1.167, delta1=0.394),
    ),
    "kitti": (
        _clip2depth(abs_rel=0.074, percent_below=75.6, auty=0.303),
        Baseline(name="SPACE-CLIP", source=SPACE_CLIP, abs_rel=0.090, rmse=3.845, delta1=0.909),
        Baseline(name="Auty et al., 7 linear bins", source=AUTY, abs_rel=0.303, rmse=6.322, delta1=0.550),
    ),
}
"""By data set, lowest AbsRel first."""


def baselines_of(kind: DataKind) -> tuple[Baseline, ...]:
    """Published errors on a kind of data set; empty for a folder of own images."""
    return BASELINES.get(kind, ())


def show_baselines(kind: DataKind, asked: bool | None) -> bool:
    """Decide whether to show published errors.

    Args:
        kind: the data set.
        asked: the user's choice; None shows them if there are any.

    Raises:
        OptionError: they were requested but there are none.
    """
    if asked and not baselines_of(kind):
        raise OptionError(
            "--baselines has nothing to show for a folder of images.",
            "Published results exist for NYU Depth v2 and KITTI.",
            f"Leave it out, or name the data set: {' or '.join(f'--data {kind}' for kind in BASELINES)}",
        )
    return bool(baselines_of(kind)) if asked is None else asked


def protocol_differences(kind: DataKind, protocol: Protocol) -> list[str]:
    """Reasons why results by `protocol` are not comparable with published ones; empty if they are."""
    convention = CONVENTIONS[kind]
    reasons = []
    if protocol.crop != convention.crop:
        reasons.append(f"the crop is {protocol.crop}, not {convention.crop}")
    if protocol.limits_m[1] != convention.depth_limits_m[1]:
        reasons.append(f"the depth cap is {protocol.limits_m[1]:g} m, not {convention.depth_limits_m[1]:g} m")
    if protocol.align != "none":
        reasons.append(f"predictions are aligned to the truth ({protocol.align}); published ones are metric")
    return reasons
