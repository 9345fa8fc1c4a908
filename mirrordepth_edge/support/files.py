"""Files that are either whole or not there, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirrordepth_edge.errors import InputError, OptionError


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path`; move it into place only if the block succeeds.

    The temporary file keeps the suffix, since libraries choose formats by it, and is removed when
    the block raises anything, Ctrl-C included.

    Args:
        durable: force the bytes to the disk first, so that a power cut leaves no empty file. Too
            slow on an SD card for every frame of a video.

    Raises:
        InputError: the folder cannot be made or written.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as written:  # Windows syncs only what is open for writing
                os.fsync(written.fileno())
        temporary.chmod(mode)  # a library that makes the file anew may have made it private
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole; paths become text."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=os.fspath) + "\n", encoding="utf-8")


def read_json(path: Path, what: str, cure: str) -> Any:
    """What a JSON file holds.

    Args:
        what: what the file is to the user, such as "result".
        cure: what to do where it is damaged.

    Raises:
        InputError: it is not there, cannot be read, or is no JSON.
    """
    try:
        return json.loads(existing_file(path, what).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no readable JSON.", str(error), cure) from error
    except OSError as error:
        raise InputError(f"Cannot read {path}.", error.strerror or str(error), "Check its permissions.") from error


def unwritable(path: Path, error: OSError) -> InputError:
    """The one wording for a file that could not be written."""
    return InputError(
        f"Cannot write {path}.",
        f"{error.strerror or error}",
        "Free space, check the folder's permissions, or name another place.",
    )


def ensure_folder(path: Path) -> Path:
    """Make `path` a folder one can write into, or say why not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def require_suffix(
    path: Path, suffixes: tuple[str, ...], what: str, option: str = "-o", reader: str = "every verb"
) -> None:
    """Refuse an output name that nothing would open again.

    Args:
        what: what the file is to the user, such as "a checkpoint".
        option: by which it was named.
        reader: who knows files by the ends of their names.

    Raises:
        OptionError: the name has another ending.
    """
    if path.suffix not in suffixes:
        raise OptionError(
            f"{path} is no name for {what}.",
            f"Its name must end in {' or '.join(suffixes)}, by which {reader} knows it.",
            f"{option} {path.with_suffix(suffixes[0])}",
        )


def existing_file(path: Path, what: str) -> Path:
    """Return `path` if it is a file with something in it.

    Args:
        what: what the file is to the user, such as "checkpoint".
    """
    if not path.exists():
        raise InputError(f"There is no {what} at {path}.", "No such file.", "Check the path for a typing error.")
    if not path.is_file():
        raise InputError(f"The {what} {path} is not a file.", "It is a folder or a device.", "Name a file.")
    if path.stat().st_size == 0:
        raise InputError(
            f"The {what} {path} is empty.",
            "It has 0 bytes; a copy or a download broke off.",
            "Copy or make the file again.",
        )
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
