"""The report of an evaluation: one page, and its numbers as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mirrordepth_edge import __version__
from mirrordepth_edge.config import DataKind
from mirrordepth_edge.evaluation.baselines import baselines_of
from mirrordepth_edge.evaluation.consistency import SAME_DEPTH_RATIO
from mirrordepth_edge.evaluation.edges import CONTOUR_RATIOS
from mirrordepth_edge.evaluation.evaluate import EVALUATION_VERSION, WIDE_PX, Evaluation, Protocol
from mirrordepth_edge.imaging.draw import error_colours
from mirrordepth_edge.imaging.postprocess import colourise
from mirrordepth_edge.machine.device import Machine, installed_versions, machine
from mirrordepth_edge.report import charts
from mirrordepth_edge.report.examples import Example
from mirrordepth_edge.report.html import described, picture_uri, render_page
from mirrordepth_edge.report.tables import (
    BOUNDARY_F1,
    METRICS,
    PUBLISHED,
    TRUE_DEPTH,
    baseline_notes,
    boundary_notes,
    consistency_table,
    figures,
    marked_name,
    short_names,
)
from mirrordepth_edge.support.files import sha256_of

if TYPE_CHECKING:
    from mirrordepth_edge.predictor import DepthPredictor

PACKAGES = ("numpy", "opencv-python", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx")
"""Whose versions a result may depend on."""
ERROR_LIMIT = 0.5
"""Relative error at which the colours of error pictures end."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """One model as it was evaluated."""

    path: str
    sha256: str
    backend: str
    """What ran it, with its version."""
    device: str
    precision: str
    trained: bool

    @classmethod
    def of(cls, predictor: DepthPredictor, path: Path) -> EvaluatedModel:
        """What an opened model is."""
        session = predictor.session
        return cls(
            path=str(path),
            sha256=sha256_of(path),
            backend=f"{session.backend} {session.version}",
            device=session.device,
            precision=session.precision,
            trained=predictor.trained,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Everything that the page says."""

    source: str
    """What was evaluated, in the user's words."""
    kind: DataKind
    protocol: Protocol
    results: dict[str, Evaluation]
    """By model, in the order asked for; the first is what others are compared with."""
    artefacts: dict[str, EvaluatedModel]
    examples: tuple[Example, ...]
    baselines: bool
    machine: Machine
    packages: dict[str, str]
    made: str
    """When, in words."""

    @classmethod
    def here(
        cls,
        source: str,
        kind: DataKind,
        protocol: Protocol,
        results: dict[str, Evaluation],
        artefacts: dict[str, EvaluatedModel],
        examples: tuple[Example, ...],
        baselines: bool,
    ) -> EvaluationReport:
        """A report made now on this machine."""
        return cls(
            source=source,
            kind=kind,
            protocol=protocol,
            results=results,
            artefacts=artefacts,
            examples=examples,
            baselines=baselines,
            machine=machine(),
            packages=installed_versions(PACKAGES),
            made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values of all models; pictures that are only shown are left out."""
        models = {
            name: {"artefact": asdict(self.artefacts[name]), "evaluation": result.to_json()}
            for name, result in self.results.items()
        }
        return {
            "schema_version": EVALUATION_VERSION,
            "mirrordepth_edge": __version__,
            "made": self.made,
            "data": {"source": self.source, "kind": self.kind},
            "machine": asdict(self.machine),
            "packages": self.packages,
            "models": models,
        }


def evaluation_page(report: EvaluationReport) -> str:
    """The report as one HTML file, which loads nothing."""
    names = short_names(report.results)
    far_m = _far(report.examples)
    return render_page(
        "evaluation.html.j2",
        report=report,
        names=names,
        pictures=len(next(iter(report.results.values())).pictures),
        protocol_words=protocol_words(report.protocol),
        metrics=METRICS,
        published=PUBLISHED,
        rows=[(names[model], figures(result)) for model, result in report.results.items()],
        untrained=[names[model] for model, artefact in report.artefacts.items() if not artefact.trained],
        baselines=[(marked_name(each), each) for each in baselines_of(report.kind)] if report.baselines else [],
        baseline_notes=baseline_notes(report.kind, report.protocol) if report.baselines else (),
        consistency=consistency_table(report.results),
        consistency_words=_consistency_words(report.results),
        charts=_charts(report.results, names),
        sentences=[
            *_comparisons(report.results, names),
            *_boundary_sentences(report.results, names),
            *boundary_notes(report.results),
        ],
        comparison_chart=_comparison_chart(report.results, names),
        examples=[_shown(example, names, far_m) for example in report.examples],
        depth_scale=charts.scale(lambda depth_m: colourise(depth_m, (0.0, far_m)), far_m, "depth, m (and beyond)"),
        error_scale=charts.scale(
            lambda error: error_colours(error, ERROR_LIMIT), ERROR_LIMIT, "relative error, % (and beyond)", 100
        ),
        environment=[*described(report.machine), *report.packages.items()],
    )


def protocol_words(protocol: Protocol) -> list[str]:
    """How depth was compared, in sentences."""
    near, far = protocol.limits_m
    lowest, highest = CONTOUR_RATIOS[[0, -1]]
    crop = {
        "none": "",
        "eigen": ", inside the crop of Eigen et al. (rows 45 to 470 and columns 41 to 600 of 480x640)",
        "garg": ", inside the crop of Garg et al. (41 % to 99 % of the height, 4 % to 96 % of the width)",
    }[protocol.crop]
    flip = (
        "Each prediction is the mean of the picture's and of its mirror image's."
        if protocol.flip
        else "Predictions are not averaged with those of mirrored pictures."
    )
    align = {
        "none": "Depth is metric: nothing is aligned to the truth.",
        "median": "NOT METRIC: each prediction is scaled so that its median is the truth's.",
        "lsq": "NOT METRIC: scale and shift of each prediction are fitted to the truth by least squares.",
    }[protocol.align]
    return [
        f"A pixel counts where its true depth is strictly between {near:g} m and {far:g} m{crop}.",
        "Predictions are resized bilinearly to the size of the true depth and clamped to the same range.",
        flip,
        align,
        "Each metric is computed on each picture; figures are means over pictures, so that each picture counts once.",
        "Boundary F1 (Depth Pro, arXiv 2410.02073), 0 to 1: how well the prediction has the true depth's steps between "
        f"neighbouring pixels. A step is a ratio above {lowest:.2f} to {highest:.2f}; F1 is averaged over "
        f"{len(CONTOUR_RATIOS)} such ratios, and scale does not matter. Between pixels {WIDE_PX} px apart soft edges "
        "count too, and steep surfaces: compare that figure with other models' here, not with published ones.",
    ]


def _consistency_words(results: dict[str, Evaluation]) -> list[str]:
    """What the measures of consistency that were taken mean."""
    temporal = next((each.temporal for each in results.values() if each.temporal is not None), None)
    words = []
    if temporal is not None and temporal.measure == "reprojection":
        words.append(
            "Reprojection: each frame's points are seen from the frame before by the camera's poses; the mean "
            "difference to the depth there, in metres. Points hidden there count as errors, for the true depth too."
        )
    elif temporal is not None:
        words.append(
            "OPW (FMNet, arXiv 2208.00380; NVDS, arXiv 2307.08695): mean difference between a frame's depth and that "
            "of the frame before, carried along by optical flow (OpenCV's DIS), in metres, where flow forth and back "
            "agree. Motion of the camera towards things is in it, as the true depth's figure shows."
        )
    if temporal is not None:
        words.append(f"rTC: share of those pixels whose two depths differ by less than a factor of {SAME_DEPTH_RATIO}.")
    if any(each.spatial is not None for each in results.values()):
        words.append(
            "Edges (iBims-1, arXiv 1805.01328): accuracy is the mean distance from predicted depth edges to the "
            "nearest true one, completeness that of both ways, in pixels and cut at 10. In both maps edges are "
            "found by Canny."
        )
    return words


def _charts(results: dict[str, Evaluation], names: dict[str, str]) -> list[tuple[str, charts.Chart]]:
    """Titles and charts of the errors themselves."""
    first = next(iter(results.values()))
    total = max(1, sum(each.pixels for each in first.ranges))
    bars = [(each.near_m, each.far_m, each.pixels / total) for each in first.ranges]
    far_m, x_label = first.protocol.limits_m[1], "true depth, m"

    def by_depth(field: str) -> dict[str, list[tuple[float, float | None]]]:
        return {
            names[model]: [((each.near_m + each.far_m) / 2, getattr(each, field)) for each in result.ranges]
            for model, result in results.items()
        }

    return [
        (
            "Pictures by their AbsRel",
            charts.histogram(
                {names[model]: _errors(result) for model, result in results.items()}, "AbsRel", "pictures"
            ),
        ),
        ("AbsRel by true depth", charts.curves(by_depth("abs_rel"), (0, far_m), x_label, "AbsRel", bars)),
        (
            "Seen too near (below 0) or too far (above) by true depth",
            charts.curves(by_depth("bias"), (0, far_m), x_label, "mean (p - g) / g"),
        ),
    ]


def _comparison_chart(results: dict[str, Evaluation], names: dict[str, str]) -> charts.Chart | None:
    first, *others = results
    if not others:
        return None
    base = _errors(results[first])
    apart = {names[model]: [b - a for a, b in zip(base, _errors(results[model]), strict=True)] for model in others}
    return charts.differences(base, apart, f"AbsRel of {names[first]}", "AbsRel, difference")


def _comparisons(results: dict[str, Evaluation], names: dict[str, str]) -> list[str]:
    """Every further model with the first, picture by picture, in a sentence each."""
    first, *others = results
    base = np.array(_errors(results[first]))
    sentences = []
    for model in others:
        apart = np.array(_errors(results[model])) - base
        mean, count = float(apart.mean()), len(apart)
        interval = ""
        if count > 1:
            half = 1.96 * float(apart.std(ddof=1)) / count**0.5
            interval = f" (95 % interval, were pictures independent: {mean - half:+.2g} to {mean + half:+.2g})"
        sentences.append(
            f"{names[model]} against {names[first]}: AbsRel changes by {mean:+.2g} in the mean{interval}, "
            f"by {float(np.abs(apart).max()):.2g} at most, and is larger on {int((apart > 0).sum())} of "
            f"{count} pictures."
        )
    return sentences


def _boundary_sentences(results: dict[str, Evaluation], names: dict[str, str]) -> list[str]:
    """What is in each boundary F1."""
    means = {(model, metric): getattr(result, metric) for model, result in results.items() for metric in BOUNDARY_F1}
    return [
        f"{names[model]}, {BOUNDARY_F1[metric]}: precision {mean.precision:.4f}, recall {mean.recall:.4f}."
        for (model, metric), mean in means.items()
        if mean is not None
    ]


def _errors(result: Evaluation) -> list[float]:
    return [picture.metrics.abs_rel for picture in result.pictures]


def _far(examples: tuple[Example, ...]) -> float:
    """Where the colours of the sheet end, in metres: beyond nearly all that counts in its pictures."""
    if not examples:
        return 1.0
    counted_m = np.concatenate([each.truth_m[each.counted] for each in examples])
    return charts.above(float(np.percentile(counted_m, 97)))


def _shown(example: Example, names: dict[str, str], far_m: float) -> dict[str, Any]:
    """A picture of the sheet as the template takes it."""
    limits_m = (0.0, far_m)
    truth = colourise(example.truth_m, limits_m)
    truth[~(example.truth_m > 0)] = 255  # the grey of other pictures is also that of a depth
    pictures = [("photo", example.frame), (TRUE_DEPTH, truth)]
    for model, depth_m in example.predictions_m.items():
        truth_m = np.where(example.counted, example.truth_m, np.float32(1))
        error = np.where(example.counted, np.abs(depth_m - truth_m) / truth_m, np.float32(np.nan))
        pictures.append((f"{names[model]}, AbsRel {example.abs_rel[model]:.3f}", colourise(depth_m, limits_m)))
        pictures.append((f"{names[model]}, error", error_colours(error.astype(np.float32), ERROR_LIMIT)))
    height, width = example.frame.shape[:2]
    return {
        "layout": "wide" if width > 2 * height else "six" if len(pictures) == 6 else "",
        "place": example.place,
        "name": example.name,
        "pictures": [(caption, picture_uri(picture)) for caption, picture in pictures],
    }
