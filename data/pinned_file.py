"""A file that is downloaded once, and used only if it has the checksum that was written down."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path


def fetch_pinned(path: Path, command: Sequence[str], algorithm: str, expected: str) -> Path:
    """`path`, which `command` downloads into the folder it runs in, unless it is there already.

    algorithm: of hashlib. expected: the checksum in hex. Raises ValueError where the file has another one.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, cwd=path.parent, check=True)
    if (found := checksum(path, algorithm)) != expected:
        raise ValueError(
            f"{path} has the {algorithm} {found}, expected {expected}: delete the file and download it again. If the "
            "checksum stays the same, the package has changed since it was pinned"
        )
    return path


def checksum(path: Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
