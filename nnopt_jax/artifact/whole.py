"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def replace_file(path: str | os.PathLike[str], chunks: Iterable[Any]) -> None:
    """Writes beside the place, flushes to the disk, and renames.

    Args:
        path: the file; an older one is replaced, or left as it was. Links are followed.
        chunks: its content in order, each bytes or a buffer of bytes.

    Raises:
        OSError: it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     replace_file(f"{folder}/a", [b"wh", b"ole"])
        ...     Path(f"{folder}/a").read_bytes()
        b'whole'
    """
    place = Path(os.path.realpath(path))
    beside = place.with_name(f".{place.name}.{secrets.token_hex(6)}")
    try:
        with open(beside, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
