"""Which backend opens which artefact."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, cast

from mirrordepth_edge.artefact import CHECKPOINT_SUFFIX as CHECKPOINT_SUFFIX
from mirrordepth_edge.artefact import ONNX_SUFFIX as ONNX_SUFFIX
from mirrordepth_edge.artefact import PLAN_SUFFIXES as PLAN_SUFFIXES
from mirrordepth_edge.artefact import Artefact, kind_of, model_path
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
INSTEAD_OF = {"onnxruntime": ("openvino",)}
"""Backends that open what is for another one, where they are asked for by name."""


def backend(name: str) -> Backend:
    """The backend module of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in MODULES:
        raise OptionError(
            f"There is no backend named {name!r}.", f"The backends are {', '.join(MODULES)}.", "Use one of these names."
        )
    return cast(Backend, import_module(f"mirrordepth_edge.backends.{MODULES[name]}"))


def probe_all() -> dict[str, Probe]:
    """What each backend says of this machine."""
    return {name: backend(name).probe() for name in MODULES}


def backend_for(path: Path, manifest: Manifest | None, wanted: str | None = None) -> str:
    """The backend that runs this artefact: the one it is for, or the one asked for if that opens it too.

    Raises:
        InputError: the file's suffix is unknown, or the manifest of a plan describes no engine.
        OptionError: there is no such backend, or it does not open such files.
    """
    own = _own_backend(path, manifest)
    if wanted in (None, own):
        return own
    backend(wanted)  # a name that is known
    able = (own, *INSTEAD_OF.get(own, ()))
    if wanted not in able:
        raise OptionError(
            f"{wanted} cannot open {path}.",
            f"Such a file runs in {' or '.join(able)}.",
            f"Leave --backend out, or name a file that is for {wanted}.",
        )
    return wanted


def _own_backend(path: Path, manifest: Manifest | None) -> str:
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
    """Open an artefact with the backend it is for, or the one asked for, after checking it against its manifest.

    A plan is also checked against this machine (`backends.trt.compatibility`); warnings are in the session's `notes`.

    Returns:
        The session, and the manifest at the session's size (None for a checkpoint, which describes itself).

    Raises:
        InputError: the file does not match its manifest, or a plan was not built for this machine.
        OptionError: no backend supports these options for this artefact.
    """
    options = options or SessionOptions()
    artefact = open_artefact(model, trust=options.trust)
    path, manifest = artefact.path, artefact.sidecar
    warnings: tuple[str, ...] = ()
    if artefact.kind == "plan":
        from mirrordepth_edge.backends.trt.compatibility import check_compatibility

        report = check_compatibility(artefact, wanted=options.backend)
        manifest, warnings = report.manifest, report.notes
    elif options.trust:
        raise OptionError(
            f"{path} has no use for --trust.",
            "It is for plans, which are native code; other files are data.",
            "Leave --trust out.",
        )
    name = backend_for(path, manifest, options.backend)
    if options.bf16 and name != "openvino":
        raise OptionError(
            f"{name} has no use for --bf16.",
            "Only OpenVINO multiplies in bfloat16, on CPUs that can.",
            "Leave --bf16 out; for an ONNX file, --backend openvino.",
        )
    if artefact.kind != "plan":
        _refuse_engine_options(name, options)
    session: Any = backend(name).open(path, manifest, options)
    if warnings:
        session.notes = (*warnings, *getattr(session, "notes", ()))
    return session, None if manifest is None else manifest.at(options.network_hw, options.batch)


def _refuse_engine_options(name: str, options: SessionOptions) -> None:
    asked = {
        f"in_flight={options.in_flight}": options.in_flight != 1,
        f"zero_copy={options.zero_copy}": options.zero_copy is not None,
        f"cuda_graph={options.cuda_graph}": not options.cuda_graph,
    }
    if useless := [option for option, given in asked.items() if given]:
        raise OptionError(
            f"{name} has no use for {', '.join(useless)}.",
            "Only engines take frames in flight, and are told of CUDA graphs and of memory shared with the GPU.",
            "Leave it out, or run an engine, as mde build makes it.",
        )
