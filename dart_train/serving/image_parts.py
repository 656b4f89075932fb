"""Images of a request: data URLs, and file URLs inside the folders that the server may read. Nothing is fetched from
the network: a request could otherwise make the server call addresses that only it can reach."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from ..data.images import ImageStore
from ..data.issues import BadRowError
from ..data.sample import ImageRef
from .errors import ApiError
from .limits import ServerLimits

_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII)


class ImageReader:
    """Opens the images of requests as RGB."""

    def __init__(self, folders: Sequence[Path], limits: ServerLimits) -> None:
        self.limits = limits
        self.memory = ImageStore(limit=limits.image_pixels)
        self.folders = [(ImageStore(root=folder, limit=limits.image_pixels), folder) for folder in folders]

    def open(self, url: str, place: str) -> Image.Image:
        """place: the key of the body, for errors. Raises ApiError."""
        scheme = url.split(":", 1)[0].lower()
        if scheme == "data":
            return self._open(self.memory, ImageRef(data=self._decode(url, place)), place)
        if scheme == "file":
            return self._open_file(url, place)
        if scheme in ("http", "https"):
            what = "this server fetches no images from the network: send the image as a data URL (data:image/...;base64"
            raise ApiError(400, f"{what},...){self._or_file()}", param=place, code="url_refused")
        what = f"given a URL that begins with {url[:16]!r}, expected a data URL (data:image/...;base64,...)"
        raise ApiError(400, f"{what}{self._or_file()}", param=place)

    def _or_file(self) -> str:
        return ", or as a file URL inside the folders of --images" if self.folders else ""

    def _decode(self, url: str, place: str) -> bytes:
        head = _DATA_URL.match(url[:200])
        if head is None:
            raise ApiError(400, "a data URL that does not begin with data:image/...;base64,", param=place)
        if (len(url) - head.end()) * 3 // 4 > self.limits.image_bytes + 2:
            raise self._too_large(place)
        try:
            data = base64.b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ApiError(400, f"the image is not valid base64: {error}", param=place, code="bad_base64") from None
        if len(data) > self.limits.image_bytes:
            raise self._too_large(place)
        return data

    def _open_file(self, url: str, place: str) -> Image.Image:
        refused = ApiError(
            400, "the file is not an image inside a folder that this server may read (--images)", param=place,
            code="file_refused",
        )  # fmt: skip
        parts = urlsplit(url)
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not os.path.isabs(path):
            raise refused
        for store, _ in self.folders:
            ref = ImageRef(path=path)
            try:
                store.size(ref)  # refuses what is outside before its size is read
            except BadRowError as error:
                if error.code in ("outside_folder", "missing_image"):
                    continue
                raise self._bad(error, place) from None
            if os.path.getsize(path) > self.limits.image_bytes:
                raise self._too_large(place)
            return self._open(store, ref, place)
        raise refused

    def _open(self, store: ImageStore, ref: ImageRef, place: str) -> Image.Image:
        try:
            return store.open(ref)
        except BadRowError as error:
            raise self._bad(error, place) from None

    def _bad(self, error: BadRowError, place: str) -> ApiError:
        if error.code == "bomb":
            what = f"the image has more pixels than this server takes ({self.limits.image_pixels}): {error.message}"
            return ApiError(400, what, param=place, code="image_too_large")
        return ApiError(400, f"the image cannot be used: {error}", param=place, code=error.code)

    def _too_large(self, place: str) -> ApiError:
        what = f"the image has more bytes than this server takes ({self.limits.image_bytes})"
        return ApiError(400, what, param=place, code="image_too_large")
