"""Engines built once: kept by what they are built of, with which options and where, and why one is built anew.

Each engine has a folder of its own, `CACHE/NAME-KEY/ENVIRONMENT/`, which is filled under another name and renamed into
place, plan, manifest and reference at once. So two processes that need the same engine may both build it, and the
later one takes what is there: no lock is left behind by one that was killed. Beside the plan `built.json` says, for
people too, what it was built of and where; the newest of them answers why an engine is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from mirrordepth_edge import __version__
from mirrordepth_edge.config import BuildConfig, Strict
from mirrordepth_edge.engines import build
from mirrordepth_edge.engines.build import HERE, BuildPlan
from mirrordepth_edge.engines.progress import BuildProgress
from mirrordepth_edge.errors import InputError
from mirrordepth_edge.machine.device import nvidia_gpus
from mirrordepth_edge.machine.driver import driver_version
from mirrordepth_edge.manifest import read_manifest
from mirrordepth_edge.support.files import ensure_folder, unwritable, write_json
from mirrordepth_edge.support.schema import read_strict

RECORD: Final = "built.json"
KEPT: Final = 2
"""Engines of one ONNX file and options, those of other environments included: going back and forth costs nothing."""
MOST_BYTES: Final = 4_000_000_000
"""Of all engines together; the one just built stays in any case. An engine of ViT-B/16 in FP16 has about 2.5e8."""
ABANDONED_S: Final = 24 * 3600
"""Age at which what a build that was killed has left is deleted."""
NAMES: Final = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}


@dataclass(frozen=True, kw_only=True)
class BuiltWith(Strict):
    """What an engine depends on beside its ONNX file and options."""

    flavour: str
    version: str
    """Of the builder."""
    gpu: str
    compute_capability: str
    driver: str
    """NVIDIA's kernel driver and the newest CUDA it serves."""
    system: str
    package: str
    """Version of mirrordepth-edge, which decides how builders are called."""

    @property
    def builder(self) -> str:
        """Such as `TensorRT 10.3.0`."""
        return f"{NAMES.get(self.flavour, self.flavour)} {self.version}".strip()


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

    path: Path
    built: bool
    """Just now, not before."""
    why: str
    """Why it was built, or since when it is kept, in words."""


def cache_folder() -> Path:
    """Where engines are kept; they may be deleted at any time."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("mirrordepth-edge")) / "engines"


def cached_engine(
    onnx_path: Path,
    *,
    options: BuildConfig | None = None,
    folder: Path | None = None,
    plan: BuildPlan | None = None,
    on_stage: Callable[[str], object] = lambda stage: None,
) -> Cached:
    """The engine of an ONNX file for this machine's GPU, built if there is none that fits.

    Args:
        onnx_path: with its manifest.
        options: of the builder; its own settings where None.
        folder: the cache; `cache_folder()` where None.
        plan: what to build, where that is decided already.
        on_stage: told what is being done, as often as the builder tells.

    Raises:
        MissingError: it cannot be built on this machine; the cure says where.
        InputError: the ONNX file is not whole or cannot be built, or the cache cannot be written.
        OptionError, DeviceError, GateError: as `deploy.build.build_engine`.
    """
    plan = plan or build.plan_build(HERE)
    options = options or BuildConfig()
    folder = folder or cache_folder()
    source = read_manifest(onnx_path)
    now = built_with(plan)
    place = folder / f"{onnx_path.stem}-{_digest([asdict(source), asdict(options)])[:12]}" / _digest(asdict(now))[:12]
    path = place / f"{onnx_path.stem}.{plan.flavour}.plan"
    flaw = _flaw(path, source.artefact_sha256, plan)
    if flaw is None:
        with suppress(OSError):  # a cache that is read-only serves as well
            os.utime(place / RECORD)
        kept = _read(place / RECORD)
        return Cached(path=path, built=False, why=f"built {kept.built} by {now.builder}" if kept else "built before")
    title = f"building with {now.builder}"

    def tell(progress: BuildProgress) -> None:
        on_stage(f"{title}, {progress.fraction:.0%}")

    why = flaw if place.exists() else _why_anew(place.parent, now)
    scratch = ensure_folder(place.parent) / f".{secrets.token_hex(4)}"
    try:
        scratch.mkdir(parents=True)
        on_stage(title)
        build.build_engine(onnx_path, scratch / path.name, plan, options, tell)
        record = Record(
            onnx=onnx_path.name,
            onnx_sha256=source.artefact_sha256,
            options=options,
            environment=now,
            built=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        )
        write_json(scratch / RECORD, asdict(record))
        _put(scratch, place, lambda: _flaw(path, source.artefact_sha256, plan) is None)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    prune(folder, place)
    return Cached(path=path, built=True, why=why)


def built_with(plan: BuildPlan) -> BuiltWith:
    """What an engine built now would depend on."""
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
    """What has changed, in words, such as `TensorRT 10.3.0 → 10.7.0`; empty where nothing has."""
    if then.flavour != now.flavour:
        changes = [f"{then.builder} → {now.builder}"]
    else:
        changes = [f"{NAMES.get(now.flavour, now.flavour)} {then.version} → {now.version}"] * (
            then.version != now.version
        )
    labels = {field.name: field.name.replace("_", " ") for field in fields(BuiltWith)[2:]} | {"gpu": "GPU"}
    labels["package"] = "mirrordepth-edge"
    for name, label in labels.items():
        old, new = getattr(then, name), getattr(now, name)
        if old != new:
            changes.append(f"{label} {old} → {new}")
    return ", ".join(changes)


def prune(folder: Path, keep: Path) -> None:
    """Delete the engines that were used longest ago: beyond `KEPT` of one file, and beyond `MOST_BYTES` in all.

    Args:
        folder: the cache.
        keep: the folder of an engine that stays.
    """
    for left in folder.glob("*/.*"):
        if time.time() - _used(left) > ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)
    newest_first = [keep, *(engine for engine in _engines(folder, f"*/*/{RECORD}") if engine != keep)]
    total, of_file = 0, dict[Path, int]()
    for engine in newest_first:
        size = sum(_bytes(file) for file in engine.glob("*"))
        of_file[engine.parent] = of_file.get(engine.parent, 0) + 1
        if engine != keep and (total + size > MOST_BYTES or of_file[engine.parent] > KEPT):
            _remove(engine)
        else:
            total += size


def _put(scratch: Path, place: Path, is_good: Callable[[], bool]) -> None:
    """Rename a finished engine into place, unless another process was quicker."""
    if place.exists() and not is_good():
        _remove(place)
    try:
        scratch.rename(place)
    except OSError as error:
        if not is_good():
            raise unwritable(place, error) from error


def _remove(engine: Path) -> None:
    """Out of sight first: a folder half deleted would be taken for a damaged engine."""
    gone = engine.with_name(f".{secrets.token_hex(4)}")
    with suppress(OSError):  # Windows keeps what another process has open
        engine.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):
            engine.parent.rmdir()


def _flaw(path: Path, onnx_sha256: str, plan: BuildPlan) -> str | None:
    """Why an engine that is kept cannot be used, in words; None where it can."""
    try:
        manifest = read_manifest(path)
    except InputError:
        return "what was kept of it is damaged"
    if manifest.parent_sha256 != onnx_sha256:
        return "what was kept of it is damaged"
    if plan.runs_here and not build.is_proven(manifest):
        return "the one that was kept was never compared with its ONNX file"
    return None


def _why_anew(folder: Path, now: BuiltWith) -> str:
    """What changed since the newest engine of the same file and options."""
    last = next((_read(engine / RECORD) for engine in _engines(folder, f"*/{RECORD}")), None)
    return "not built here before" if last is None else difference(last.environment, now)


def _engines(folder: Path, records: str) -> list[Path]:
    """Folders of finished engines, the one used last first."""
    found = (record for record in folder.glob(records) if not record.parent.name.startswith("."))
    return [record.parent for record in sorted(found, key=_used, reverse=True)]


def _read(path: Path) -> Record | None:
    """None where it says nothing that is understood: it explains, and decides nothing."""
    try:
        return read_strict(Record, json.loads(path.read_text(encoding="utf-8")), str(path), "")
    except (OSError, ValueError, InputError):
        return None


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
