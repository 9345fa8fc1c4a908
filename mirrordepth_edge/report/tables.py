"""Tables of an evaluation for the terminal and for the HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mirrordepth_edge.config import DataKind
from mirrordepth_edge.evaluation.baselines import Baseline, baselines_of, protocol_differences
from mirrordepth_edge.evaluation.consistency import TemporalConsistency
from mirrordepth_edge.evaluation.evaluate import WIDE_PX, Evaluation, Protocol, SpatialConsistency

BOUNDARY_F1 = {
    "boundary_f1": "boundary F1",
    "boundary_f1_wide": f"boundary F1, {WIDE_PX} px",
}
METRICS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel (m)",
    "rmse": "RMSE (m)",
    "rmse_log": "RMSElog",
    "log10": "log10",
    "silog": "SILog",
    "delta1": "delta < 1.25",
    "delta2": "delta < 1.25^2",
    "delta3": "delta < 1.25^3",
    **BOUNDARY_F1,
}
PUBLISHED = ("abs_rel", "rmse", "delta1")
"""The metrics of `METRICS` that baselines have."""
SPATIAL = {
    "accuracy_px": "edge accuracy (px)",
    "completeness_px": "edge completeness (px)",
    "found": "edges, predicted/true",
}
TRUE_DEPTH = "true depth"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text in rows and columns. The first column has labels, the others mostly numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def short_names(models: Mapping[str, object]) -> dict[str, str]:
    """Shorten paths to file names if those are unique."""
    short = {model: Path(model).name for model in models}
    return short if len(set(short.values())) == len(short) else {model: model for model in models}


def results_table(results: Mapping[str, Evaluation]) -> Table:
    """Create a table with a row per metric and a column per model."""
    columns = [figures(result) for result in results.values()]
    rows = [(label, *(column[metric] for column in columns)) for metric, label in METRICS.items()]
    consistency = consistency_table(results)
    width = len(consistency.header)
    return Table(
        header=("metric", *consistency.header[1:]),
        rows=(*((*row, *[""] * (width - len(row))) for row in rows), *consistency.rows),
        notes=(*boundary_notes(results), *consistency.notes),
    )


def figures(result: Evaluation) -> dict[str, str]:
    """Format `METRICS` of an evaluation; an empty string if a metric is not available."""
    f1 = {metric: getattr(result, metric) for metric in BOUNDARY_F1}
    means = asdict(result.mean) | {metric: None if mean is None else mean.f1 for metric, mean in f1.items()}
    return {metric: _figure(means[metric], 4) for metric in METRICS}


def boundary_notes(results: Mapping[str, Evaluation]) -> tuple[str, ...]:
    """State on how many images a boundary F1 is defined, if not on all. The true depth is the same for all models."""
    first = next(iter(results.values()))
    known = {metric: getattr(first, metric) for metric in BOUNDARY_F1}
    counts = {metric: 0 if mean is None else mean.pictures for metric, mean in known.items()}
    total = len(first.pictures)
    return tuple(
        f"{BOUNDARY_F1[metric]}: on the {count} of {total} images whose true depth has such discontinuities"
        for metric, count in counts.items()
        if count < total
    )


def consistency_table(results: Mapping[str, Evaluation]) -> Table:
    """Create a table of temporal and spatial consistency with a column per model, and one for the true depth."""
    temporal = [result.temporal for result in results.values()]
    truth = next((result.temporal_truth for result in results.values()), None)
    spatial = [result.spatial for result in results.values()]
    rows = [*_temporal_rows([*temporal, truth]), *_spatial_rows([*spatial, None])]
    notes = _notes(temporal, truth, spatial, any(result.edges for result in results.values()))
    header = ("", *short_names(results).values(), TRUE_DEPTH)
    columns = len(header) if truth is not None else len(header) - 1
    return Table(header=header[:columns], rows=tuple(row[:columns] for row in rows), notes=notes)


def _temporal_rows(columns: Sequence[TemporalConsistency | None]) -> list[tuple[str, ...]]:
    first = next((column for column in columns if column is not None), None)
    if first is None:
        return []
    label = "reprojection (m)" if first.measure == "reprojection" else "OPW (m)"
    return [
        (name, *("" if column is None else f"{getattr(column, key):.4f}" for column in columns))
        for key, name in (("error_m", label), ("rtc", "rTC"))
    ]


def _spatial_rows(columns: Sequence[SpatialConsistency | None]) -> list[tuple[str, ...]]:
    if all(column is None for column in columns):
        return []
    return [
        (label, *("" if column is None else f"{getattr(column, field):.2f}" for column in columns))
        for field, label in SPATIAL.items()
    ]


def _notes(
    temporal: Sequence[TemporalConsistency | None],
    truth: TemporalConsistency | None,
    spatial: Sequence[SpatialConsistency | None],
    edges: bool,
) -> tuple[str, ...]:
    """Describe the basis of the rows."""
    notes = []
    first = next((result for result in temporal if result is not None), None)
    if first is not None:
        how = "reprojected" if first.measure == "reprojection" else "tracked by optical flow"
        notes.append(f"temporal: {first.pairs} pairs of frames, {first.share_used:.0%} of pixels {how}; not aligned")
        if truth is None:
            notes.append("temporal: the true depth has too many holes to be measured itself")
    if edges:
        images = max((result.pictures for result in spatial if result is not None), default=0)
        notes.append(
            f"edges: on {images} image{'s' * (images != 1)} whose true depth has edges; 0 px is best, 10 px: no edge"
            if images
            else "edges: the true depth has none that can be measured (edges at holes do not count)"
        )
    return tuple(notes)


def baselines_table(kind: DataKind, protocol: Protocol) -> Table:
    """Create a table of published results on a kind of data set, with notes on comparability."""
    baselines = baselines_of(kind)
    rows = tuple(
        (marked_name(baseline), *(_figure(getattr(baseline, metric), 3) for metric in PUBLISHED), baseline.source)
        for baseline in baselines
    )
    header = ("published", *(METRICS[metric] for metric in PUBLISHED), "source")
    return Table(header=header, rows=rows, notes=baseline_notes(kind, protocol))


def baseline_notes(kind: DataKind, protocol: Protocol) -> tuple[str, ...]:
    """Explain the marked baselines, and why results are not comparable if the protocol differs."""
    notes = [f"{baseline.name}: {baseline.origin}; {baseline.note}" for baseline in baselines_of(kind) if baseline.note]
    different = protocol_differences(kind, protocol)
    if different:
        notes.insert(0, f"DO NOT COMPARE with the results above: {'; '.join(different)}")
    return tuple(notes)


def marked_name(baseline: Baseline) -> str:
    """Mark a baseline with a star unless its values are published as they are."""
    return baseline.name if baseline.origin == "published" else f"{baseline.name} *"


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
