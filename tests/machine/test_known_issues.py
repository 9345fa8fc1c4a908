"""The table is well-formed, and matches what its threads report."""

from __future__ import annotations

import itertools
import re
import sys
from typing import Any

import pytest
from packaging.version import Version

from mirrordepth_edge.machine.known_issues import (
    PATTERNS,
    SEVERITIES,
    TABLE,
    KnownIssue,
    known_issues,
    load_known_issues,
)
from mirrordepth_edge.support.schema import read_strict
from mirrordepth_edge.support.versions import version_key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_the_table_fits_its_fields() -> None:
    data = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    assert set(data) == {"issue"}
    strict = tuple(read_strict(KnownIssue, entry, str(TABLE), "") for entry in data["issue"])
    assert strict == load_known_issues()
    assert len({issue.id for issue in strict}) == len(strict)


@pytest.mark.parametrize("issue", load_known_issues(), ids=lambda issue: issue.id)
def test_entries(issue: KnownIssue) -> None:
    assert issue.links
    assert all(link.startswith("https://") for link in issue.links)
    assert all(re.fullmatch(r"\d+\.\d", capability) for capability in issue.compute_capabilities)
    assert issue.patterns
    assert set(issue.patterns) <= set(PATTERNS)
    assert set(issue.precisions) <= {"fp32", "fp16", "bf16"}
    for sentence in (issue.what, issue.instead):
        assert sentence
        assert "\n" not in sentence
    if issue.since and issue.before:
        assert Version(issue.since) < Version(issue.before)
    if issue.fixed_in and issue.before:
        assert Version(issue.before) <= Version(issue.fixed_in)


# Versions that threads, by their numbers, report as wrong and as right.
WRONG: tuple[tuple[str, str, str, dict[str, Any], str], ...] = (
    ("spacewalk01#49, AGX Orin", "10.3.0.30", "8.7", {}, "tensorrt-10.3-attention"),
    ("ika-rwth#16, Orin NX", "10.3.0", "8.7", {"precision": "fp16"}, "tensorrt-10.3-attention"),
    ("TensorRT#4742, RTX A6000", "10.4.0", "8.6", {"precision": "fp32"}, "tensorrt-10.3-attention"),
    ("DEIMv2#112", "10.4", "8.9", {"precision": "fp16"}, "tensorrt-10.3-attention"),
    ("TensorRT-Edge-LLM#151, Thor", "10.13.3.9", "11.0", {"precision": "fp16"}, "tensorrt-10.13-thor-fp16"),
    ("TensorRT#4837", "10.16.1", "12.0", {"precision": "bf16"}, "tensorrt-sm120-attention"),
    ("TensorRT#4748, RTX 5080", "10.16.0.72", "12.0", {"patterns": ()}, "tensorrt-10.16-sm120-nan"),
    ("TensorRT#4482, RTX A6000", "10.7.0", "8.6", {}, "tensorrt-10.7-explicit-attention"),
    ("TensorRT#4482, on Windows", "10.11.0", "8.6", {}, "tensorrt-10.7-explicit-attention"),
    ("TensorRT#4333, L4", "10.7.0.23", "8.9", {"patterns": ("sdpa",)}, "tensorrt-10.7-sdpa"),
    ("TensorRT#4317, RTX 5090", "10.7.0", "12.0", {"patterns": ()}, "tensorrt-before-sm120"),
    ("TensorRT 11.2.1's pages, Orin", "11.2.1", "8.7", {"patterns": ()}, "tensorrt-11-jetson"),
    ("TensorRT 11.4.0's pages, Thor", "11.4.0", "11.0", {"patterns": ()}, "tensorrt-11-jetson"),
    ("TensorRT 11.3.0's pages, DLA", "10.13.0", "8.7", {"patterns": ("dla",)}, "tensorrt-dla"),
)
RIGHT: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("TensorRT#4419, 10.5", "10.5.0", "8.7", {}),
    ("DEIMv2#112, 10.6", "10.6.0", "8.9", {}),
    ("ika-rwth#16, 10.16.1", "10.16.1", "8.7", {}),
    ("spacewalk01#49, Windows", "10.12.0.36", "8.9", {}),
    ("TensorRT-Edge-LLM#105, JetPack 7.2", "10.16.2.10", "11.0", {"precision": "fp16"}),
    ("TensorRT#4820, FP32 on Thor", "10.13.3.9", "11.0", {"precision": "fp32"}),
    ("TensorRT#4837, FP32", "10.16.1", "12.0", {"precision": "fp32"}),
    ("TensorRT#4328, explicit attention", "10.7.0.23", "8.9", {"patterns": ("attention",)}),
    ("TensorRT 11.4.1's pages, Thor", "11.4.1", "11.0", {}),
    ("TensorRT 11.3.0's pages, the last DLA", "10.7.0", "8.7", {"patterns": ("dla",)}),
)


@pytest.mark.parametrize(
    ("thread", "version", "capability", "asked", "expected"), WRONG, ids=lambda value: str(value)[:40]
)
def test_versions_reported_as_wrong(
    thread: str, version: str, capability: str, asked: dict[str, Any], expected: str
) -> None:
    assert expected in {issue.id for issue in known_issues("tensorrt", version, capability, **asked)}


@pytest.mark.parametrize(("thread", "version", "capability", "asked"), RIGHT, ids=[case[0] for case in RIGHT])
def test_versions_reported_as_right(thread: str, version: str, capability: str, asked: dict[str, Any]) -> None:
    assert known_issues("tensorrt", version, capability, **asked) == ()


def test_flavours_are_apart() -> None:
    assert known_issues("tensorrt-rtx", "10.3", "8.7", tuple(PATTERNS)) == ()
    assert {issue.flavour for issue in known_issues("onnxruntime", "1.27.0", "8.9")} == {"onnxruntime"}


def test_the_worst_comes_first() -> None:
    issues = known_issues("tensorrt", "10.13.3.9", "8.7", ("dla",)) + known_issues("tensorrt", "10.7.0", "12.0")
    assert [issue.severity for issue in known_issues("tensorrt", "10.7", "12.0", ("sdpa", "attention"))] == [
        "wrong",
        "fails",
    ]
    assert {issue.severity for issue in issues} <= set(SEVERITIES)


VERSIONS = (
    "8.6.1",
    "10.0.0",
    "10.3",
    "10.3.0.30",
    "10.4.0",
    "10.10",
    "10.13.3.9",
    "10.16.2.10",
    "11.0",
    "11.4.1",
    "9.2",
)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(VERSIONS, 2)))
def test_versions_are_ordered_as_packaging_orders_them(one: str, other: str) -> None:
    assert (version_key(one) < version_key(other)) == (Version(one) < Version(other))
    assert version_key(one) != version_key(other)


def test_versions_as_they_are_written() -> None:
    assert version_key("10.3") == version_key("10.3.0") == version_key("10.3.0.0")
    assert version_key("10.3.0.30-1+cuda12.5") == (10, 3, 0, 30)
    assert version_key("2.14.1+cu130") == (2, 14, 1)
    assert version_key("unknown") == ()
    everything = {
        p.id for p in load_known_issues() if p.flavour == "tensorrt" and not {"dla", "sdpa"} & set(p.patterns)
    }
    ids = {p.id for cc in ("8.6", "8.7", "11.0", "12.0") for p in known_issues("tensorrt", "dev", cc)}
    assert ids == everything
