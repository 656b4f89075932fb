"""`train.push_to_hub`, by the real client against a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

import dart_train
from dart_train.config import load_recipe
from dart_train.training.hub_upload import upload_run
from tests.fixtures.run_scene import make_recipe

SHORT = ["train.per_device_batch_size=2", "train.save_steps=2", "train.max_steps=2", "train.push_to_hub=org/model"]


class HubHandler(BaseHTTPRequestHandler):
    """Makes repositories and takes commits, whose files are in `server.files`."""

    server: Any

    def do_POST(self) -> None:
        length = self.headers["Content-Length"]
        body = self.rfile.read(int(length)) if length else self._chunks()
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.url}/org/model", "name": "org/model", "id": "org/model"})
        elif "/preupload/" in self.path:
            wanted = [each["path"] for each in json.loads(body)["files"]]
            plan = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]
            self._answer({"files": plan})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{self.server.url}/org/model/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self._answer({})

    def do_GET(self) -> None:
        self._answer({"id": "org/model", "sha": "0" * 40, "siblings": [], "private": True, "tags": []})

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        return found

    def _answer(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.url, server.files, server.created = f"http://127.0.0.1:{server.server_port}", {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_uploaded_files_load_and_nothing_else_is_uploaded(tmp_path: Path, hub: Any) -> None:
    file = make_recipe(tmp_path)
    recipe = load_recipe(file, SHORT)
    dart_train.train(file, [*SHORT, "train.push_to_hub=null"])
    assert upload_run(recipe, lambda: HfApi(endpoint=hub.url, token="a-token")) == f"{hub.url}/org/model"
    assert hub.created[0]["visibility"] == "private"
    assert not {name for name in hub.files if "optimizer" in name or name.endswith((".pt", ".pth", ".bin"))}
    assert {"adapter_model.safetensors", "adapter_config.json", "reducer.json", "recipe.yaml"} <= hub.files.keys()
    for name, content in hub.files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    loaded = dart_train.load(tmp_path / "copy", device="cpu")
    assert loaded.attached is not None and loaded.attached.reducers[0].keep == 0.25


def test_run_without_a_hub_ends_well_and_says_how_to_upload(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = dart_train.train(make_recipe(tmp_path), SHORT)
    assert done.steps == 2 and done.checkpoint is not None
    assert f"hf upload org/model {done.checkpoint}" in caplog.text


def test_repository_has_an_owner_and_a_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.push_to_hub: given 'model', expected a repository, such as"):
        load_recipe(make_recipe(tmp_path), ["train.push_to_hub=model"])
