"""Files of the Hugging Face hub: from the cache where it has them, from the network only where it does not. Without a
network the libraries would retry each file for most of a minute, also those that the cache has."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import constants, snapshot_download

T = TypeVar("T")

_PROBE_SECONDS = 3.0
_OFFLINE = "HF_HUB_OFFLINE"


@contextmanager
def offline() -> Iterator[None]:
    """Inside, no library asks the hub, like with HF_HUB_OFFLINE=1."""
    modules = [constants, *([sys.modules["datasets.config"]] if "datasets.config" in sys.modules else [])]
    flags = [(module, getattr(module, _OFFLINE)) for module in modules]
    variable = os.environ.get(_OFFLINE)  # peft reads it at each use
    try:
        for module, _ in flags:
            setattr(module, _OFFLINE, True)
        os.environ[_OFFLINE] = "1"
        yield
    finally:
        for module, value in flags:
            setattr(module, _OFFLINE, value)
        os.environ.pop(_OFFLINE)
        if variable is not None:
            os.environ[_OFFLINE] = variable


def cached_first(load: Callable[[], T], name: str) -> T:
    """`load()`, which reads the model, adapter or data set `name`, a folder or a hub id. Raises what it raises, and
    ValueError for an id that is neither in the cache nor can be downloaded."""
    if Path(name).exists():
        return load()
    try:
        with offline():
            return load()
    except (OSError, ValueError) as error:
        require_hub(name, error)
    return load()


def require_hub(name: str, error: Exception | None = None) -> None:
    """Raises ValueError where the hub cannot be reached for `name`. error: what reading the cache raised, which is the
    reason where the cache has some of the files."""
    if hub_answers():
        return
    if error is not None and _is_downloaded(name):
        raise error
    reason = f"{_OFFLINE} is set" if constants.HF_HUB_OFFLINE else "no network?"
    raise ValueError(
        f"{name!r} is not a folder, was never downloaded to {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} does "
        f"not answer ({reason}); check the name, or download it first"
    ) from error


def _is_downloaded(name: str) -> bool:
    """Whether the cache has some files of that model."""
    try:
        return Path(snapshot_download(name, local_files_only=True)).is_dir()
    except (OSError, ValueError):
        return False


def hub_answers() -> bool:
    return not constants.HF_HUB_OFFLINE and can_connect(constants.ENDPOINT, _PROBE_SECONDS)


def can_connect(url: str, seconds: float) -> bool:
    """Whether the server accepts a connection. A proxy connects; whether it can, only the attempt shows."""
    server = urlsplit(url)
    port = server.port or (443 if server.scheme == "https" else 80)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.create_connection((server.hostname or "", port), timeout=seconds).close()
    except OSError:
        return False
    return True
