"""A server in a thread of the test's process, and clients of the standard library."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dart_train.checkpoints import Loaded
from dart_train.serving.application import ModelServer
from dart_train.serving.limits import ServerLimits, ServerSettings
from dart_train.serving.uvicorn_compat import DrainingServer, bind

NAME = "tiny"
COMPLETIONS = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    status: int
    text: str
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def answer(self) -> str:
        assert self.status == 200, self.text
        return str(self.json["choices"][0]["message"]["content"])

    @property
    def error(self) -> dict[str, Any]:
        error = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return dict(error)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of a stream, which must have ended completely."""
        lines = [line for line in self.text.split("\n\n") if line]
        assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def user(text: str, images: Sequence[Image.Image | str] = ()) -> dict[str, Any]:
    """The image parts, as `dart_train.models.prompts.user_message` has them, then the text."""
    urls = [image if isinstance(image, str) else data_url(image) for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def body(*messages: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": list(messages), "max_tokens": 6, **options}


def send(address: str, path: str, content: Any = None, **headers: str) -> Reply:
    """POST where there is content, else GET."""
    data = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    given = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(address + path, data, given)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return Reply(reply.status, reply.read().decode(), {k.lower(): v for k, v in reply.headers.items()})
    except urllib.error.HTTPError as error:
        return Reply(error.code, error.read().decode(), {k.lower(): v for k, v in error.headers.items()})


@dataclass(frozen=True)
class RunningServer:
    address: str
    server: ModelServer
    thread: threading.Thread
    http: DrainingServer

    def post(self, content: Any, **headers: str) -> Reply:
        return send(self.address, COMPLETIONS, content, **headers)

    def get(self, path: str, **headers: str) -> Reply:
        return send(self.address, path, **headers)

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").text.splitlines()
        return float(next(line.split()[-1] for line in lines if line.startswith(f"dart_train_{name} ")))


@contextmanager
def serving(
    loaded: Loaded, limits: ServerLimits | None = None, start_worker: bool = True, **settings: Any
) -> Iterator[RunningServer]:
    """start_worker=False: requests wait until the test starts `server.worker`."""
    server = ModelServer(loaded, ServerSettings(NAME, limits=limits or ServerLimits(), **settings))
    if start_worker:
        server.worker.start()
    listening = bind("127.0.0.1", 0)
    http = DrainingServer(server)
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield RunningServer(f"http://127.0.0.1:{listening.getsockname()[1]}", server, thread, http)
    finally:
        server.draining = http.should_exit = True
        server.worker.close()
        thread.join(20)
        listening.close()


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)
