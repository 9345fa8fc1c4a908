"""Files and folders that can be made again, kept in the user's cache folder between runs.

No lock is held: an entry is written under a temporary name and renamed into place. Two processes that need the same
entry may both make it, and a process that is killed leaves nothing that blocks the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Final

from mirrordepth_edge.support.files import atomic_folder, atomic_write

ABANDONED_S: Final = 24 * 3600
"""Age at which the temporary files of a killed process are deleted."""
KEY_DIGITS: Final = 16
CHECKSUM_BYTES: Final = hashlib.sha256().digest_size


def user_cache(kind: str = "") -> Path:
    """Folder of one kind of cache, such as `engines`; of all where empty. Users may delete it at any time."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("mirrordepth-edge")) / kind


def digest(*key: Any) -> str:
    """SHA-256 of a key, in hex: plain values, paths and dataclasses."""
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def read_checked(path: Path) -> bytes | None:
    """Content that `write_checked` stored. None if there is no such file, or if it is damaged."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    checksum, content = stored[:CHECKSUM_BYTES], stored[CHECKSUM_BYTES:]
    return content if content and hashlib.sha256(content).digest() == checksum else None


def write_checked(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Store content after its SHA-256.

    Args:
        durable: as `atomic_write`.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path, durable=durable) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Entries of one folder. An entry is a file or a folder, named `NAME-KEY` and the suffix.

    Other files in the folder are left alone.
    """

    folder: Path
    suffix: str
    max_per_name: int | None = None
    """Entries kept of one name, those used last."""
    max_bytes: int | None = None
    """Of all entries together."""

    def path(self, *key: Any, name: str = "") -> Path:
        """The entry of a key, whether it exists or not."""
        return self.folder / f"{name}{'-' if name else ''}{digest(*key)[:KEY_DIGITS]}{self.suffix}"

    def entries(self, name: str = "") -> list[Path]:
        """Existing entries, the one used last first.

        Args:
            name: only those of this name; all if empty.
        """
        paths = [path for path in self.folder.glob(f"*{self.suffix}") if not path.name.startswith(".")]
        named = [path for path in paths if not name or _name_of(path) == name]
        return sorted(named, key=_last_used, reverse=True)

    def touch(self, entry: Path) -> None:
        """Mark an entry as used now."""
        with suppress(OSError):  # a read-only cache can still be used
            os.utime(entry)

    def write(self, entry: Path, content: bytes, *, durable: bool = True) -> None:
        """Store a file that `read_checked` reads, then evict.

        Raises:
            InputError: the file cannot be written.
        """
        write_checked(entry, content, durable=durable)
        self.evict(keep=entry)

    @contextmanager
    def new_folder(self, entry: Path, is_valid: Callable[[], bool]) -> Iterator[Path]:
        """Yield a temporary folder that becomes the entry if the block succeeds, then evict.

        Args:
            is_valid: whether an entry that exists by then can be used. It stays, as another process may be using it.

        Raises:
            InputError: the folder cannot be written.
        """
        with atomic_folder(entry, is_valid) as temporary:
            yield temporary
        self.evict(keep=entry)

    def evict(self, *, keep: Path) -> None:
        """Delete the entries that were used longest ago and are over a limit, and abandoned temporary files.

        Args:
            keep: an entry that stays, however large it is.
        """
        for leftover in self.folder.glob(".*"):
            if time.time() - _last_used(leftover) > ABANDONED_S:
                _delete(leftover)
        total, count = 0, Counter[str]()
        for entry in (keep, *(entry for entry in self.entries() if entry != keep)):
            name, size = _name_of(entry), _size(entry)
            count[name] += 1
            too_many = self.max_per_name is not None and count[name] > self.max_per_name
            too_large = self.max_bytes is not None and total + size > self.max_bytes
            if entry != keep and (too_many or too_large):
                _delete(entry)
            else:
                total += size


def _name_of(entry: Path) -> str:
    return entry.name.rpartition("-")[0]


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(entry: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    with suppress(OSError):  # another process deletes it
        return sum(path.stat().st_size for path in (entry.glob("*") if entry.is_dir() else (entry,)))
    return 0


def _delete(entry: Path) -> None:
    with suppress(OSError):  # Windows keeps files that another process has open
        if not entry.is_dir():
            entry.unlink(missing_ok=True)
            return
        # Renamed first: another process would take a half-deleted folder for a damaged entry.
        hidden = entry.with_name(f".{secrets.token_hex(4)}")
        entry.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
