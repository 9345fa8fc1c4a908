"""Reference depth is written beside an artefact, copied along and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mirrordepth_edge.errors import InputError
from mirrordepth_edge.reference import Reference, copy_reference, read_reference, reference_path, write_reference

RNG = np.random.default_rng(0)
REFERENCE = Reference(RNG.integers(0, 256, (3, 4, 6, 3), np.uint8), RNG.uniform(0.5, 10, (3, 4, 6)).astype(np.float32))


def test_reference_is_written_read_and_copied(tmp_path: Path) -> None:
    model, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    assert read_reference(model) is None
    copy_reference(model, plan)
    assert read_reference(plan) is None
    write_reference(model, REFERENCE)
    copy_reference(model, plan)
    for artefact in (model, plan):
        stored = read_reference(artefact)
        assert stored is not None
        np.testing.assert_array_equal(stored.images, REFERENCE.images)
        np.testing.assert_array_equal(stored.depth_m, REFERENCE.depth_m)
    assert reference_path(model).read_bytes() == reference_path(plan).read_bytes()


def test_batches_wrap_around() -> None:
    images, depth_m = REFERENCE.batch(2, 4)
    for place, frame in enumerate((2, 0, 1, 2)):
        np.testing.assert_array_equal(images[place], REFERENCE.images[frame])
        np.testing.assert_array_equal(depth_m[place], REFERENCE.depth_m[frame])


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    write_reference(model, REFERENCE)
    whole = reference_path(model).read_bytes()
    for content in (b"", whole[:100], b"no archive"):
        reference_path(model).write_bytes(content)
        with pytest.raises(InputError, match="is damaged"):
            read_reference(model)
    for broken in (
        Reference(REFERENCE.images[:2], REFERENCE.depth_m),
        Reference(REFERENCE.images[:0], REFERENCE.depth_m[:0]),
        Reference(REFERENCE.images, 0 * REFERENCE.depth_m),
        Reference(REFERENCE.images, np.nan * REFERENCE.depth_m),
    ):
        write_reference(model, broken)
        with pytest.raises(InputError, match="positive depth"):
            read_reference(model)
