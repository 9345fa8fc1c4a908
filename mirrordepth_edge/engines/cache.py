"""Engines built once and kept: keyed by ONNX file, options and environment, with the reason for every rebuild.

An engine is a folder of the cache, `NAME-MODEL-ENVIRONMENT.built`, which holds plan, manifest and reference. Its
`built.json` records what the engine was built from and where; comparing it with the environment of today gives the
reason for a rebuild.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from mirrordepth_edge import __version__
from mirrordepth_edge.artefact import Artefact
from mirrordepth_edge.backends.trt.vendor import TITLES, Flavour
from mirrordepth_edge.config import BuildConfig, Strict
from mirrordepth_edge.engines import build
from mirrordepth_edge.engines.build import HERE, BuildPlan
from mirrordepth_edge.engines.worker import BuildProgress
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.machine.driver import driver_version
from mirrordepth_edge.support.cache import Cache, digest, user_cache
from mirrordepth_edge.support.files import read_json, write_json
from mirrordepth_edge.support.schema import read_strict

RECORD: Final = "built.json"
SUFFIX: Final = ".built"
MAX_ENVIRONMENTS: Final = 2
"""Engines kept of one ONNX file and its options: changing to another TensorRT and back rebuilds nothing."""
MAX_BYTES: Final = 4_000_000_000
"""Of all engines together. A ViT-B/16 engine in FP16 takes about 2.5e8."""


@dataclass(frozen=True, kw_only=True)
class BuiltWith(Strict):
    """The environment that an engine depends on."""

    flavour: Flavour
    version: str
    """Of the builder."""
    gpu: str
    compute_capability: str
    driver: str
    """NVIDIA's kernel driver and the newest CUDA version it supports."""
    system: str
    package: str
    """Version of mirrordepth-edge, which decides how builders are called."""

    @property
    def builder(self) -> str:
        """Such as `TensorRT 10.3.0`."""
        return f"{TITLES[self.flavour]} {self.version}".strip()


@dataclass(frozen=True, kw_only=True)
class Record(Strict):
    """`built.json`."""

    onnx: str
    """The file's name."""
    onnx_sha256: str
    options: BuildConfig
    environment: BuiltWith
    built: str
    """When, in UTC, ISO 8601."""


@dataclass(frozen=True, kw_only=True)
class Cached:
    """An engine that can be run."""

    artefact: Artefact
    built: bool
    """Whether it was built by this call."""
    why: str
    """Why it was built, or when it had been built."""

    @property
    def path(self) -> Path:
        return self.artefact.path


def cached_engine(
    onnx: Artefact,
    *,
    options: BuildConfig | None = None,
    folder: Path | None = None,
    plan: BuildPlan | None = None,
    on_stage: Callable[[str], object] = lambda stage: None,
) -> Cached:
    """Return the engine of an ONNX file for this machine's GPU, and build it if the cache has none.

    Args:
        options: of the builder; its defaults where None.
        folder: the cache; the user's where None.
        plan: what to build; decided here where None.
        on_stage: called with a description of what is being done.

    Raises:
        MissingError: it cannot be built on this machine; the cure says where.
        InputError: the ONNX file cannot be built, or the cache cannot be written.
        OptionError, DeviceError, GateError: as `build_engine`.
    """
    plan = plan or build.plan_build(HERE)
    options = options or BuildConfig()
    cache = Cache(
        folder=folder or user_cache("engines"), suffix=SUFFIX, max_per_name=MAX_ENVIRONMENTS, max_bytes=MAX_BYTES
    )
    now = built_with(plan)
    # The manifest contains the file's SHA-256, so a changed file has another name.
    name = f"{onnx.path.stem}-{digest(onnx.manifest, options)[:12]}"
    entry = cache.path(now, name=name)
    path = entry / f"{onnx.path.stem}.{plan.flavour}.plan"

    def open_kept() -> Artefact | str:
        return _open_kept(path, onnx, plan)

    kept = open_kept()
    if isinstance(kept, Artefact):
        cache.touch(entry)
        record = _read_record(entry)
        why = f"built {record.built} by {now.builder}" if record else "built before"
        return Cached(artefact=kept, built=False, why=why)
    why = kept if entry.exists() else _reason_to_build(cache.entries(name), now)
    title = f"building with {now.builder}"

    def on_progress(progress: BuildProgress) -> None:
        on_stage(f"{title}, {progress.fraction:.0%}")

    with cache.new_folder(entry, lambda: isinstance(open_kept(), Artefact)) as temporary:
        on_stage(title)
        build.build_engine(onnx, temporary / path.name, plan, options, on_progress)
        record = Record(
            onnx=onnx.name,
            onnx_sha256=onnx.sha256,
            options=options,
            environment=now,
            built=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        )
        write_json(temporary / RECORD, asdict(record))
    return Cached(artefact=Artefact.open(path), built=True, why=why)


def built_with(plan: BuildPlan) -> BuiltWith:
    """The environment of an engine that is built now."""
    gpus = nvidia_gpus()
    return BuiltWith(
        flavour=plan.flavour,
        version=plan.version,
        gpu=gpus[0].name if gpus else "none",
        compute_capability=", ".join(plan.compute_capabilities),
        driver=str(driver_version(gpus[0])) if gpus else "none",
        system=f"{platform.system()}-{platform.machine()}".lower(),
        package=__version__,
    )


def difference(then: BuiltWith, now: BuiltWith) -> str:
    """What has changed, such as `TensorRT 10.3.0 → 10.7.0`; empty if nothing has."""
    changes = []
    if then.flavour != now.flavour:
        changes.append(f"{then.builder} → {now.builder}")
    elif then.version != now.version:
        changes.append(f"{then.builder} → {now.version}")
    labels = {"gpu": "GPU", "package": "mirrordepth-edge"}
    for name in (field.name for field in fields(BuiltWith)[2:]):
        old, new = getattr(then, name), getattr(now, name)
        if old != new:
            changes.append(f"{labels.get(name, name.replace('_', ' '))} {old} → {new}")
    return ", ".join(changes)


def _open_kept(path: Path, onnx: Artefact, plan: BuildPlan) -> Artefact | str:
    """Open a kept engine, or say why it cannot be used."""
    engine = None
    with suppress(InputError):
        engine = Artefact.open(path)
    if engine is None or engine.manifest.parent_sha256 != onnx.sha256:
        return "the kept engine is damaged"
    if plan.runs_here and not build.is_verified(engine.manifest):
        return "the kept engine was never compared with its ONNX file"
    return engine


def _reason_to_build(others: list[Path], now: BuiltWith) -> str:
    """What changed since the last engine of the same file and options.

    Args:
        others: its engines of other environments, the one used last first.
    """
    last = next((_read_record(entry) for entry in others), None)
    return "not built here before" if last is None else difference(last.environment, now)


def _read_record(entry: Path) -> Record | None:
    """None if it cannot be read: a record explains, and decides nothing."""
    path = entry / RECORD
    try:
        return read_strict(Record, read_json(path, "record", ""), str(path), "")
    except InputError:
        return None
