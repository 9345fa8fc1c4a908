"""Choose the backend for a model file and open it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

from mirrordepth_edge.artefact import PLAN_SUFFIXES, Artefact, kind_of, model_path
from mirrordepth_edge.backends.base import Backend, Probe, Session
from mirrordepth_edge.config import SessionOptions
from mirrordepth_edge.errors import InputError, OptionError
from mirrordepth_edge.manifest import Manifest

MODULES = {
    "torch": "pytorch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "trt.tensorrt",
    "tensorrt-rtx": "trt.tensorrt_rtx",
}
ALTERNATIVES = {"onnxruntime": ("openvino",)}
"""Backends that also open the files of a default backend, if `--backend` names them."""


def backend(name: str) -> Backend:
    """Import the backend module of that name.

    Raises:
        OptionError: the name is unknown.
    """
    if name not in MODULES:
        raise OptionError(
            f"Unknown backend {name!r}.", f"Available backends: {', '.join(MODULES)}.", "Use one of these names."
        )
    return cast(Backend, import_module(f"mirrordepth_edge.backends.{MODULES[name]}"))


def probe_all() -> dict[str, Probe]:
    """Probe every backend on this machine."""
    return {name: backend(name).probe() for name in MODULES}


def backend_for(path: Path, manifest: Manifest | None, wanted: str | None = None) -> str:
    """Name of the backend that runs a model file.

    Args:
        wanted: backend that the user chose; None for the default of the file.

    Raises:
        InputError: the file type is unknown, or the manifest of a plan describes no engine.
        OptionError: the chosen backend does not exist or cannot open such files.
    """
    default = _default_backend(path, manifest)
    if wanted in (None, default):
        return default
    backend(wanted)  # raises if the name is unknown
    able = (default, *ALTERNATIVES.get(default, ()))
    if wanted not in able:
        raise OptionError(
            f"{wanted} cannot open {path}.",
            f"Such files run in {' or '.join(able)}.",
            f"Leave out --backend, or choose a file for {wanted}.",
        )
    return wanted


def _default_backend(path: Path, manifest: Manifest | None) -> str:
    kind = kind_of(path)
    if kind == "plan":
        if manifest is None or manifest.engine is None:
            raise InputError(
                f"{path} is not an engine.", "Its manifest describes no engine.", "Build it with mde build."
            )
        return manifest.engine.flavour
    return "torch" if kind == "checkpoint" else "onnxruntime"


def open_artefact(model: str | Path | Artefact, *, trust: bool = False) -> Artefact:
    """Open a model file as `Artefact.open` does; one that is open already is returned as it is.

    Raises:
        InputError: see `Artefact.open`. For an engine without a manifest, the message says how to rebuild it.
    """
    if isinstance(model, Artefact):
        return model
    path = model_path(model)
    if path.suffix in PLAN_SUFFIXES:
        from mirrordepth_edge.backends.trt.compatibility import open_plan

        return open_plan(path, trust=trust)
    return Artefact.open(path)


def open_session(
    model: str | Path | Artefact, options: SessionOptions | None = None
) -> tuple[Session, Manifest | None]:
    """Check a model file against its manifest and open it with its backend.

    A plan is also checked against this machine (`trt.compatibility`); warnings are in the session's `notes`.

    Returns:
        The session, and the manifest at the session's size (None for a checkpoint, which has its own metadata).

    Raises:
        InputError: the file does not match its manifest, or the plan was not built for this machine.
        OptionError: the backend does not support an option.
    """
    options = options or SessionOptions()
    artefact = open_artefact(model, trust=options.trust)
    path, manifest = artefact.path, artefact.sidecar
    warnings: tuple[str, ...] = ()
    if artefact.kind == "plan":
        from mirrordepth_edge.backends.trt.compatibility import check_compatibility

        manifest, warnings = check_compatibility(artefact, wanted=options.backend)
    elif options.trust:
        raise OptionError(
            f"--trust does not apply to {path}.",
            "It applies to engines, which are native code; other files are data.",
            "Leave out --trust.",
        )
    name = backend_for(path, manifest, options.backend)
    if options.bf16 and name != "openvino":
        raise OptionError(
            f"{name} does not support --bf16.",
            "Only OpenVINO computes in bfloat16, on CPUs that support it.",
            "Leave out --bf16, or add --backend openvino for an ONNX file.",
        )
    if artefact.kind != "plan":
        _reject_engine_options(name, options)
    session: Any = backend(name).open(path, manifest, options)
    if warnings:
        session.notes = (*warnings, *getattr(session, "notes", ()))
    return session, None if manifest is None else manifest.at(options.network_hw, options.batch)


def _reject_engine_options(name: str, options: SessionOptions) -> None:
    is_set = {
        f"in_flight={options.in_flight}": options.in_flight != 1,
        f"zero_copy={options.zero_copy}": options.zero_copy is not None,
        f"cuda_graph={options.cuda_graph}": not options.cuda_graph,
    }
    if unsupported := [option for option, value in is_set.items() if value]:
        raise OptionError(
            f"{name} does not support {', '.join(unsupported)}.",
            "Only engines support several frames in flight, CUDA graphs and zero-copy buffers.",
            "Leave it out, or run an engine built by mde build.",
        )
