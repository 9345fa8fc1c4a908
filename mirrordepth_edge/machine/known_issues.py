"""Known issues of runtime versions on certain GPUs, from the table in `known_issues.toml`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mirrordepth_edge.support.schema import tomllib
from mirrordepth_edge.support.versions import version_key

TABLE = Path(__file__).with_name("known_issues.toml")

Flavour = Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]
Severity = Literal["wrong", "fails", "unsupported", "slow"]
Certainty = Literal["confirmed", "reported", "one report"]
Pattern = Literal["any", "attention", "sdpa", "dla"]

SEVERITIES: tuple[Severity, ...] = ("wrong", "fails", "unsupported", "slow")
"""Most severe first."""
PATTERNS: dict[Pattern, str] = {
    "any": "any network",
    "attention": "softmax attention, as in a ViT",
    "sdpa": "attention exported from PyTorch's scaled_dot_product_attention; mde export never writes it",
    "dla": "layers that run on a Jetson's DLA",
}
MODEL_PATTERNS: tuple[Pattern, ...] = ("attention",)
"""Patterns of every model of this package, whose decoder has attention."""


@dataclass(frozen=True, kw_only=True)
class KnownIssue:
    """An issue of a runtime; `known_issues.toml` describes the fields."""

    id: str
    flavour: Flavour
    since: str | None = None
    before: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    patterns: tuple[Pattern, ...]
    precisions: tuple[str, ...] = ()
    severity: Severity
    certainty: Certainty
    what: str
    seen_on: str
    fixed_in: str | None = None
    instead: str
    links: tuple[str, ...]


@cache
def load_known_issues() -> tuple[KnownIssue, ...]:
    """The whole table."""
    entries = tomllib.loads(TABLE.read_text(encoding="utf-8"))["issue"]
    return tuple(KnownIssue(**{key: _as_tuple(value) for key, value in entry.items()}) for entry in entries)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def known_issues(
    flavour: Flavour,
    version: str,
    compute_capability: str,
    patterns: Collection[Pattern] = MODEL_PATTERNS,
    *,
    precision: str | None = None,
) -> tuple[KnownIssue, ...]:
    """Known issues of a runtime on a GPU, most severe first.

    Args:
        version: version of the runtime, as it reports it, such as "10.3.0".
        compute_capability: compute capability of the GPU, such as "8.7".
        patterns: patterns in the network; `any` is implied.
        precision: precision of the engine, such as "fp16"; None for any.
    """
    issues = [
        issue
        for issue in load_known_issues()
        if issue.flavour == flavour
        if _between(version_key(version), issue.since, issue.before)
        if not issue.compute_capabilities or compute_capability in issue.compute_capabilities
        if {"any", *patterns} & set(issue.patterns)
        if precision is None or not issue.precisions or precision in issue.precisions
    ]
    return tuple(sorted(issues, key=lambda issue: SEVERITIES.index(issue.severity)))


def _between(version: tuple[int, ...], since: str | None, before: str | None) -> bool:
    if not version:  # an unknown version matches: a needless warning is better than a missing one
        return True
    return (since is None or version >= version_key(since)) and (before is None or version < version_key(before))
