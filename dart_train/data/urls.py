"""Pictures over http(s): refused unless the user allowed it, and never more bytes than a picture has."""

from __future__ import annotations

import io
import urllib.request
from http.client import HTTPException
from typing import BinaryIO

from .findings import BadRow

TIMEOUT_SECONDS = 20
MAX_BYTES = 64 * 1024 * 1024


def fetch(url: str, allowed: bool) -> BinaryIO:
    if not allowed:
        raise BadRow("url_refused", url[:200])
    if not url.lower().startswith(("http://", "https://")):
        raise BadRow("url_refused", f"{url[:200]}: only http and https are read")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            data = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise BadRow("url_unreachable", f"{url[:200]}: {error}") from None
    if len(data) > MAX_BYTES:
        raise BadRow("url_unreachable", f"{url[:200]}: more than {MAX_BYTES} bytes")
    return io.BytesIO(data)
