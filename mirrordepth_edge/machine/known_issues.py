"""Runtimes and GPUs that are known not to go together, from the threads that say so: `known_issues.toml`."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = Path(__file__).with_name("known_issues.toml")

Flavour = Literal["tensorrt", "tensorrt-rtx", "onnxruntime"]
Severity = Literal["wrong", "fails", "unsupported", "slow"]
Certainty = Literal["confirmed", "reported", "one report"]
Pattern = Literal["any", "attention", "sdpa", "dla"]

SEVERITIES: tuple[Severity, ...] = ("wrong", "fails", "unsupported", "slow")
"""The worst first."""
PATTERNS: dict[Pattern, str] = {
    "any": "any network",
    "attention": "softmax attention, as in a ViT",
    "sdpa": "attention exported from PyTorch's scaled_dot_product_attention; mde export never writes it",
    "dla": "layers that are to run on a Jetson's DLA",
}
OURS: tuple[Pattern, ...] = ("attention",)
"""What every model of this package has, if only in its decoder."""


@dataclass(frozen=True, kw_only=True)
class KnownProblem:
    """One combination that goes wrong; `known_issues.toml` describes the fields."""

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


def version_key(text: str) -> tuple[int, ...]:
    """What a version is ordered by: its leading numbers, such as (10, 3, 0, 30) of "10.3.0.30-1+cuda12.5".

    Zeros at the end do not count: 10.3 is 10.3.0. Empty where the text begins with no number.
    """
    match = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


@cache
def known_bad() -> tuple[KnownProblem, ...]:
    """The whole table."""
    entries = tomllib.loads(TABLE.read_text(encoding="utf-8"))["problem"]
    return tuple(KnownProblem(**{key: _frozen(value) for key, value in entry.items()}) for entry in entries)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def known_problems(
    flavour: Flavour,
    version: str,
    compute_capability: str,
    patterns: Collection[Pattern] = OURS,
    *,
    precision: str | None = None,
) -> tuple[KnownProblem, ...]:
    """What is known to go wrong with a runtime on a GPU, the worst first.

    Args:
        version: of the runtime, as it names itself, such as "10.3.0".
        compute_capability: of the GPU, such as "8.7".
        patterns: what the network has; `any` need not be named.
        precision: of the engine, such as "fp16"; None: whichever.
    """
    found = [
        problem
        for problem in known_bad()
        if problem.flavour == flavour
        if _between(version_key(version), problem.since, problem.before)
        if not problem.compute_capabilities or compute_capability in problem.compute_capabilities
        if {"any", *patterns} & set(problem.patterns)
        if precision is None or not problem.precisions or precision in problem.precisions
    ]
    return tuple(sorted(found, key=lambda problem: SEVERITIES.index(problem.severity)))


def _between(version: tuple[int, ...], since: str | None, before: str | None) -> bool:
    """A version that cannot be read is within any bounds: better one warning too many."""
    if not version:
        return True
    return (since is None or version >= version_key(since)) and (before is None or version < version_key(before))
