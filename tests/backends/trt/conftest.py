"""A GPU with its runtimes that engine tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrordepth_edge.backends.trt import cuda
from mirrordepth_edge.backends.trt import session as engine
from mirrordepth_edge.backends.trt.plan import trt_logger
from mirrordepth_edge.backends.trt.runtime_cache import SUFFIX, RuntimeCache

from .fake_engine import CONTENT, FakeCuda, Machine, Script, gpu


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A fake GPU, and a plan for it."""
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "runtime", lambda: fake)
    monkeypatch.setattr(engine, "nvidia_gpus", lambda: (gpu(),))
    plan = tmp_path / "tiny.plan"
    plan.write_bytes(CONTENT)
    yield Machine(fake, Script(fake), plan, RuntimeCache(tmp_path / "cache" / f"tiny{SUFFIX}"))
    trt_logger.cache_clear()
