"""Tables of an evaluation, as a terminal and a page show them."""

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
"""Metrics that baselines have; all of `METRICS` for one's own models."""
SPATIAL = {
    "accuracy_px": "edge accuracy (px)",
    "completeness_px": "edge complet. (px)",
    "found": "edges, found/true",
}
TRUE_DEPTH = "true depth"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text in rows and columns; the first column is words, the others mostly numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def short_names(models: Mapping[str, object]) -> dict[str, str]:
    """File names without their folders, where that still tells the models apart."""
    short = {model: Path(model).name for model in models}
    return short if len(set(short.values())) == len(short) else {model: model for model in models}


def results_table(results: Mapping[str, Evaluation]) -> Table:
    """Metrics down, models across: a terminal of 80 columns holds several."""
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
    """`METRICS` of a data set as they are shown; empty where there was nothing to compare."""
    f1 = {metric: getattr(result, metric) for metric in BOUNDARY_F1}
    means = asdict(result.mean) | {metric: None if mean is None else mean.f1 for metric, mean in f1.items()}
    return {metric: _figure(means[metric], 4) for metric in METRICS}


def boundary_notes(results: Mapping[str, Evaluation]) -> tuple[str, ...]:
    """On how many pictures a boundary F1 is known, where not on all; the true depth is the same for all models."""
    first = next(iter(results.values()))
    known = {metric: getattr(first, metric) for metric in BOUNDARY_F1}
    counts = {metric: 0 if mean is None else mean.pictures for metric, mean in known.items()}
    total = len(first.pictures)
    return tuple(
        f"{BOUNDARY_F1[metric]}: on the {count} of {total} pictures whose true depth has such steps"
        for metric, count in counts.items()
        if count < total
    )


def consistency_table(results: Mapping[str, Evaluation]) -> Table:
    """Consistency in time and space, as far as it was measured: models across, the true depth last if it is there."""
    temporal = [result.temporal for result in results.values()]
    truth = next((result.temporal_truth for result in results.values()), None)
    spatial = [result.spatial for result in results.values()]
    rows = [*_temporal_rows([*temporal, truth]), *_spatial_rows([*spatial, None])]
    notes = _notes(temporal, truth, spatial, any(result.edges for result in results.values()))
    header = ("", *short_names(results).values(), TRUE_DEPTH)
    columns = len(header) if truth is not None else len(header) - 1
    return Table(header=header[:columns], rows=tuple(row[:columns] for row in rows), notes=notes)


def _temporal_rows(columns: Sequence[TemporalConsistency | None]) -> list[tuple[str, ...]]:
    first = next((each for each in columns if each is not None), None)
    if first is None:
        return []
    label = "reprojection (m)" if first.measure == "reprojection" else "OPW (m)"
    return [
        (name, *("" if each is None else f"{getattr(each, key):.4f}" for each in columns))
        for key, name in (("error_m", label), ("rtc", "rTC"))
    ]


def _spatial_rows(columns: Sequence[SpatialConsistency | None]) -> list[tuple[str, ...]]:
    if all(each is None for each in columns):
        return []
    return [
        (label, *("" if each is None else f"{getattr(each, field):.2f}" for each in columns))
        for field, label in SPATIAL.items()
    ]


def _notes(
    temporal: Sequence[TemporalConsistency | None],
    truth: TemporalConsistency | None,
    spatial: Sequence[SpatialConsistency | None],
    edges: bool,
) -> tuple[str, ...]:
    """What the rows do not say."""
    notes = []
    first = next((each for each in temporal if each is not None), None)
    if first is not None:
        how = "seen twice by the poses" if first.measure == "reprojection" else "followed by optical flow"
        notes.append(f"in time: {first.pairs} pairs of frames, {first.share_used:.0%} of pixels {how}; not aligned")
        if truth is None:
            notes.append("in time: the true depth has too many holes to be judged itself")
    if edges:
        pictures = max((each.pictures for each in spatial if each is not None), default=0)
        notes.append(
            f"edges: on the {pictures} pictures whose true depth has some; 0 px is best, 10 px is none near"
            if pictures
            else "edges: no true depth has any that can be judged, away from its holes"
        )
    return tuple(notes)


def baselines_table(kind: DataKind, protocol: Protocol) -> Table:
    """Published figures on a kind of data set, and why they do not compare where they do not."""
    baselines = baselines_of(kind)
    rows = tuple(
        (marked_name(each), *(_figure(getattr(each, metric), 3) for metric in PUBLISHED), each.source)
        for each in baselines
    )
    header = ("published", *(METRICS[metric] for metric in PUBLISHED), "source")
    return Table(header=header, rows=rows, notes=baseline_notes(kind, protocol))


def baseline_notes(kind: DataKind, protocol: Protocol) -> tuple[str, ...]:
    """What marks mean, and why figures do not compare where they do not."""
    notes = [f"{each.name}: {each.origin}; {each.note}" for each in baselines_of(kind) if each.note]
    other = protocol_differences(kind, protocol)
    if other:
        notes.insert(0, f"DO NOT COMPARE with the results above: {'; '.join(other)}")
    return tuple(notes)


def marked_name(baseline: Baseline) -> str:
    """With a star where the figure is not simply published."""
    return baseline.name if baseline.origin == "published" else f"{baseline.name} *"


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
