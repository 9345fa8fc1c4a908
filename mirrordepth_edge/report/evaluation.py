"""The report of an evaluation as an HTML page and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from mirrordepth_edge import __version__
from mirrordepth_edge.artefact import Artefact
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
from mirrordepth_edge.report.html import describe_machine, image_uri, render_page
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

if TYPE_CHECKING:
    from mirrordepth_edge.predictor import DepthPredictor

PACKAGES = ("numpy", "opencv-python", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx")
"""Packages whose versions may affect a result."""
ERROR_LIMIT = 0.5
"""Relative error at which the colour scale of error images ends."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model as it was evaluated."""

    path: str
    sha256: str
    backend: str
    """Name and version of the backend."""
    device: str
    precision: str
    trained: bool

    @classmethod
    def of(cls, predictor: DepthPredictor, artefact: Artefact) -> EvaluatedModel:
        """Describe an opened model."""
        session = predictor.session
        return cls(
            path=str(artefact.path),
            sha256=artefact.sha256,
            backend=f"{session.backend} {session.version}",
            device=session.device,
            precision=session.precision,
            trained=predictor.trained,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The content of the page."""

    source: str
    """Name of the data, as the user gave it."""
    kind: DataKind
    protocol: Protocol
    results: dict[str, Evaluation]
    """By model, in the order given; the first is the reference of the comparison."""
    artefacts: dict[str, EvaluatedModel]
    examples: tuple[Example, ...]
    baselines: bool
    machine: Machine
    packages: dict[str, str]
    made: str
    """Date and time."""

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
        """Create a report with the present time and machine."""
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
        """Return plain values of all models, without the example images."""
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
    """Render the report as a self-contained HTML page."""
    names = short_names(report.results)
    far_m = _colour_limit(report.examples)
    return render_page(
        "evaluation.html.j2",
        report=report,
        names=names,
        images=len(next(iter(report.results.values())).pictures),
        protocol_words=protocol_words(report.protocol),
        metrics=METRICS,
        published=PUBLISHED,
        rows=[(names[model], figures(result)) for model, result in report.results.items()],
        untrained=[names[model] for model, artefact in report.artefacts.items() if not artefact.trained],
        baselines=[(marked_name(baseline), baseline) for baseline in baselines_of(report.kind)]
        if report.baselines
        else [],
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
        examples=[_example_images(example, names, far_m) for example in report.examples],
        depth_scale=charts.scale(lambda depth_m: colourise(depth_m, (0.0, far_m)), far_m, "depth, m (and beyond)"),
        error_scale=charts.scale(
            lambda error: error_colours(error, ERROR_LIMIT), ERROR_LIMIT, "relative error, % (and beyond)", 100
        ),
        environment=[*describe_machine(report.machine), *report.packages.items()],
    )


def protocol_words(protocol: Protocol) -> list[str]:
    """Describe in sentences how depth was compared."""
    near, far = protocol.limits_m
    lowest, highest = CONTOUR_RATIOS[[0, -1]]
    crop = {
        "none": "",
        "eigen": ", inside the crop of Eigen et al. (rows 45 to 470 and columns 41 to 600 of 480x640)",
        "garg": ", inside the crop of Garg et al. (41 % to 99 % of the height, 4 % to 96 % of the width)",
    }[protocol.crop]
    flip = (
        "Each prediction is the mean of those of the image and of its mirror image."
        if protocol.flip
        else "Predictions are not averaged with those of mirrored images."
    )
    align = {
        "none": "Depth is metric: predictions are not aligned to the true depth.",
        "median": "NOT METRIC: each prediction is scaled to the median of the true depth.",
        "lsq": "NOT METRIC: scale and shift of each prediction are fitted to the true depth by least squares.",
    }[protocol.align]
    return [
        f"Pixels are evaluated if their true depth is strictly between {near:g} m and {far:g} m{crop}.",
        "Predictions are resized bilinearly to the size of the true depth and clamped to the same range.",
        flip,
        align,
        "Metrics are computed per image and averaged over images.",
        "Boundary F1 (Depth Pro, arXiv 2410.02073), 0 to 1: agreement of depth discontinuities between neighbouring "
        "pixels with those of the true depth. A discontinuity is a depth ratio above a threshold. F1 is averaged over "
        f"{len(CONTOUR_RATIOS)} thresholds from {lowest:.2f} to {highest:.2f} and does not depend on scale. The "
        f"variant for pixels {WIDE_PX} px apart also counts soft edges and steep surfaces; compare it only between "
        "models here, not with published values.",
    ]


def _consistency_words(results: dict[str, Evaluation]) -> list[str]:
    """Explain the consistency measures of the results."""
    temporal = next((result.temporal for result in results.values() if result.temporal is not None), None)
    words = []
    if temporal is not None and temporal.measure == "reprojection":
        words.append(
            "Reprojection: the points of each frame are projected into the previous frame with the camera poses; mean "
            "difference to its depth, in metres. Points occluded there count as errors, for the true depth too."
        )
    elif temporal is not None:
        words.append(
            "OPW (FMNet, arXiv 2208.00380; NVDS, arXiv 2307.08695): mean difference between the depth of a frame and "
            "that of the previous frame, warped by optical flow (OpenCV's DIS), in metres, where forward and backward "
            "flow agree. It includes the forward motion of the camera, as the value for the true depth shows."
        )
    if temporal is not None:
        words.append(f"rTC: share of these pixels whose depths differ by less than a factor of {SAME_DEPTH_RATIO}.")
    if any(result.spatial is not None for result in results.values()):
        words.append(
            "Edges (iBims-1, arXiv 1805.01328): accuracy is the mean distance from predicted depth edges to the "
            "nearest true edge, completeness the mean distance in both directions, in pixels, clipped at 10. Edges of "
            "both maps are Canny edges."
        )
    return words


def _charts(results: dict[str, Evaluation], names: dict[str, str]) -> list[tuple[str, charts.Chart]]:
    """Create the charts of the errors, with their titles."""
    first = next(iter(results.values()))
    total = max(1, sum(depth_bin.pixels for depth_bin in first.ranges))
    bars = [(depth_bin.near_m, depth_bin.far_m, depth_bin.pixels / total) for depth_bin in first.ranges]
    far_m, x_label = first.protocol.limits_m[1], "true depth, m"

    def by_depth(field: str) -> dict[str, list[tuple[float, float | None]]]:
        return {
            names[model]: [
                ((depth_bin.near_m + depth_bin.far_m) / 2, getattr(depth_bin, field)) for depth_bin in result.ranges
            ]
            for model, result in results.items()
        }

    return [
        (
            "Images by AbsRel",
            charts.histogram({names[model]: _errors(result) for model, result in results.items()}, "AbsRel", "images"),
        ),
        ("AbsRel by true depth", charts.curves(by_depth("abs_rel"), (0, far_m), x_label, "AbsRel", bars)),
        (
            "Bias by true depth (negative: too near)",
            charts.curves(by_depth("bias"), (0, far_m), x_label, "mean (p - g) / g"),
        ),
    ]


def _comparison_chart(results: dict[str, Evaluation], names: dict[str, str]) -> charts.Chart | None:
    first, *others = results
    if not others:
        return None
    base = _errors(results[first])
    changes = {names[model]: [b - a for a, b in zip(base, _errors(results[model]), strict=True)] for model in others}
    return charts.differences(base, changes, f"AbsRel of {names[first]}", "difference of AbsRel")


def _comparisons(results: dict[str, Evaluation], names: dict[str, str]) -> list[str]:
    """Compare every other model with the first, image by image, one sentence per model."""
    first, *others = results
    base = np.array(_errors(results[first]))
    sentences = []
    for model in others:
        changes = np.array(_errors(results[model])) - base
        mean, count = float(changes.mean()), len(changes)
        interval = ""
        if count > 1:
            half = 1.96 * float(changes.std(ddof=1)) / count**0.5
            interval = f" (95 % interval, if images are independent: {mean - half:+.2g} to {mean + half:+.2g})"
        sentences.append(
            f"{names[model]} against {names[first]}: AbsRel changes by {mean:+.2g} on average{interval} and by at most "
            f"{float(np.abs(changes).max()):.2g}. It is larger on {int((changes > 0).sum())} of {count} images."
        )
    return sentences


def _boundary_sentences(results: dict[str, Evaluation], names: dict[str, str]) -> list[str]:
    """List precision and recall of each boundary F1."""
    means = {(model, metric): getattr(result, metric) for model, result in results.items() for metric in BOUNDARY_F1}
    return [
        f"{names[model]}, {BOUNDARY_F1[metric]}: precision {mean.precision:.4f}, recall {mean.recall:.4f}."
        for (model, metric), mean in means.items()
        if mean is not None
    ]


def _errors(result: Evaluation) -> list[float]:
    return [picture.metrics.abs_rel for picture in result.pictures]


def _colour_limit(examples: tuple[Example, ...]) -> float:
    """Choose the end of the depth colour scale, in metres: above 97 % of the evaluated pixels."""
    if not examples:
        return 1.0
    counted_m = np.concatenate([example.truth_m[example.counted] for example in examples])
    return charts.above(float(np.percentile(counted_m, 97)))


def _example_images(example: Example, names: dict[str, str], far_m: float) -> dict[str, Any]:
    """Render the images of an example for the template."""
    limits_m = (0.0, far_m)
    truth = colourise(example.truth_m, limits_m)
    truth[~(example.truth_m > 0)] = 255  # white, because the grey of error images is also a depth colour
    images = [("photo", example.frame), (TRUE_DEPTH, truth)]
    for model, depth_m in example.predictions_m.items():
        truth_m = np.where(example.counted, example.truth_m, np.float32(1))
        error = np.where(example.counted, np.abs(depth_m - truth_m) / truth_m, np.float32(np.nan))
        images.append((f"{names[model]}, AbsRel {example.abs_rel[model]:.3f}", colourise(depth_m, limits_m)))
        images.append((f"{names[model]}, error", error_colours(error.astype(np.float32), ERROR_LIMIT)))
    height, width = example.frame.shape[:2]
    return {
        "layout": "wide" if width > 2 * height else "six" if len(images) == 6 else "",
        "place": example.place,
        "name": example.name,
        "images": [(caption, image_uri(image)) for caption, image in images],
    }
