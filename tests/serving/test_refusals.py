"""What the server refuses: each with its status, the key that is wrong, and what to do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dart_train
from dart_train.checkpoints import Loaded
from dart_train.serving.errors import ApiError
from dart_train.serving.image_parts import ImageReader
from dart_train.serving.limits import ServerLimits
from tests.serving.clients import COMPLETIONS, RunningServer, body, data_url, send, serving, user, wait_until
from tests.zoo import make_image, save_folder

LIMITS = ServerLimits(
    image_bytes=50_000, image_pixels=5000, images=2, prompt_tokens=160, max_tokens=32, batch=1, waiting=1,
    request_seconds=60,
)  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = save_folder("llava", tmp_path_factory.mktemp("model") / "llava")
    return dart_train.load(folder, reducer={"method": "dart", "keep": 8, "layer": 2}, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def running(loaded: Loaded) -> Iterator[RunningServer]:
    with serving(loaded, LIMITS) as server:
        yield server


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {  # what differs in the body, its key, words of the message
    "no messages": ({"messages": []}, "messages", "at least one message"),
    "unknown key": ({"best_off": 2}, "best_off", "unknown"),
    "several answers": ({"n": 2}, "n", "does not support"),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "does not support"),
    "log probabilities": ({"logprobs": True}, "logprobs", "does not support"),
    "json": ({"response_format": {"type": "json_object"}}, "response_format", "does not support"),
    "too many tokens": ({"max_tokens": 33}, "max_tokens", "from 1 to 32"),
    "no tokens": ({"max_completion_tokens": 0}, "max_completion_tokens", "from 1 to 32"),
    "temperature": ({"temperature": 2.5}, "temperature", "from 0 to 2"),
    "temperature nan": ({"temperature": float("nan")}, "temperature", "from 0 to 2"),
    "boolean number": ({"top_p": True}, "top_p", "expected a number"),
    "stop": ({"stop": ["a", ""]}, "stop", "none empty"),
    "stream": ({"stream": "yes"}, "stream", "expected a bool"),
    "budgets": ({"keep": [0.5, 0.25]}, "keep", "2 budgets for 1 stages"),
    "budget": ({"keep": 1.5}, "keep", "1.5"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0", "expected one of"),
    "last message": ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "must be of the user"),
    "content": ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "a list of parts"),
    "audio": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0", "input_audio",
    ),
    "image of the assistant": (
        {"messages": [{"role": "assistant", "content": user("x", [data_url(make_image(1))])["content"]}]},
        "messages.0.content.0", "only the user",
    ),
    "forged image": ({"messages": [user("look <image> here")]}, "messages.0.content.0", "control token"),
    "too many images": ({"messages": [user("x", [make_image(1)] * 3)]}, "messages", "at most 2"),
    "prompt": ({"messages": [user("x " * 200)]}, "messages", "160"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_bodies(running: RunningServer, case: str) -> None:
    changes, param, words = WRONG[case]
    reply = running.post({**body({"role": "user", "content": "which shape"}), **changes})
    assert reply.status == 400 and reply.error["type"] == "invalid_request_error"
    assert reply.error["param"] == param and words in reply.error["message"]


def test_all_errors_of_a_body_are_one_message(running: RunningServer) -> None:
    wrong = {**body(user("x")), "n": 3, "temperature": -1, "stop": [1], "colour": "red"}
    message = running.post(wrong).error["message"]
    assert all(f"{key}: " in message for key in ("n", "temperature", "stop", "colour"))


def test_keys_that_change_nothing_are_accepted(running: RunningServer) -> None:
    neutral = {"n": 1, "user": "someone", "tools": [], "frequency_penalty": 0.0, "response_format": {"type": "text"}}
    assert running.post({**body(user("which shape")), **neutral, "seed": None}).status == 200


def test_unknown_model_and_unknown_route(running: RunningServer) -> None:
    reply = running.post({**body(user("x")), "model": "gpt-4o"})
    assert (reply.status, reply.error["code"]) == (404, "model_not_found") and "'tiny'" in reply.error["message"]
    assert running.get("/v1/models/gpt-4o").status == running.get("/v1/embeddings").status == 404
    assert running.get("/v1/models/tiny").json == running.get("/v1/models").json["data"][0]
    assert running.get(COMPLETIONS).status == 405 and running.get(COMPLETIONS).error["message"]


@pytest.mark.parametrize("content,words", [
    (b"{", "not valid JSON"), (b"[1]", "expected a JSON object"), (b"[" * 100_000, "not valid JSON"),
])  # fmt: skip
def test_bodies_that_are_not_objects(running: RunningServer, content: bytes, words: str) -> None:
    reply = running.post(content)
    assert reply.status == 400 and words in reply.error["message"]


def test_a_form_of_a_web_page_is_refused(running: RunningServer) -> None:
    reply = running.post(json.dumps(body(user("x"))).encode(), content_type="text/plain")
    assert reply.status == 415


def test_a_body_over_the_limit_is_not_read(running: RunningServer) -> None:
    assert running.post(b" " * (LIMITS.body_bytes + 1)).status == 413


def test_api_key(loaded: Loaded) -> None:
    with serving(loaded, api_key="secret") as running:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            reply = running.post(body(user("x")), **headers)
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
            assert running.get("/v1/models", **headers).status == 401
        assert running.post(body(user("x")), authorization="Bearer secret").status == 200
        assert running.get("/health").status == 200


# images


def refusal(reader: ImageReader, url: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        reader.open(url, "place")
    assert caught.value.status == 400 and caught.value.param == "place"
    return caught.value


def test_nothing_is_fetched_from_the_network() -> None:
    for url in ("http://127.0.0.1:1/x.png", "HTTPS://example.com/x.png"):
        error = refusal(ImageReader([], LIMITS), url)
        assert error.code == "url_refused" and "fetches no images from the network" in error.message
        assert "data URL" in error.message and "--images" not in error.message
    assert "--images" in refusal(ImageReader([Path("/")], LIMITS), "http://127.0.0.1:1/x.png").message
    assert refusal(ImageReader([], LIMITS), "ftp://x/y.png").code is None


def test_data_urls() -> None:
    reader = ImageReader([], LIMITS)
    for kind in ("PNG", "JPEG", "WEBP"):
        opened = reader.open(data_url(make_image(1), kind), "place")
        assert (opened.size, opened.mode) == (make_image(1).size, "RGB")
    good = data_url(make_image(1))
    assert refusal(reader, "data:image/png," + good).code is None
    assert refusal(reader, good[:40] + "!" + good[41:]).code == "bad_base64"
    assert refusal(reader, good[: 22 + len(good) // 8 * 4]).code in ("truncated_image", "unreadable_image")
    assert refusal(reader, "data:image/png;base64,aGVsbG8=").code == "unreadable_image"
    assert refusal(reader, "data:image/png;base64," + "A" * 80_000).code == "image_too_large"
    assert refusal(reader, data_url(make_image(1).resize((100, 100)))).code == "image_too_large"


def test_files_of_allowed_folders_only(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for folder in (allowed / "below", other):
        folder.mkdir(parents=True)
        make_image(2).save(folder / "a b.png")
    (allowed / "link.png").symlink_to(other / "a b.png")
    (allowed / "notes.txt").write_text("secret")
    make_image(2).save(allowed / "big.bmp")
    with (allowed / "big.bmp").open("ab") as file:
        file.write(b"\0" * LIMITS.image_bytes)
    reader = ImageReader([other / "nothing", allowed], LIMITS)
    assert reader.open(f"file://{allowed}/below/a%20b.png", "place").size == make_image(2).size
    messages = {
        refusal(reader, url).message
        for url in (
            f"file://{other}/a%20b.png",
            f"file://{other}/is%20not%20there.png",
            f"file://{allowed}/is%20not%20there.png",
            f"file://{allowed}/../other/a%20b.png",
            f"file://{allowed}/%2e%2e/other/a%20b.png",
            f"file://{allowed}/link.png",
            f"file://host{allowed}/below/a%20b.png",
            "file:below/a%20b.png",
            f"file://{allowed}/below",
            f"file://{allowed}/%00.png",
        )
    }
    assert len(messages) == 1  # the message does not reveal what exists
    assert refusal(reader, f"file://{allowed}/notes.txt").code == "unreadable_image"
    assert refusal(reader, f"file://{allowed}/big.bmp").code == "image_too_large"
    assert refusal(ImageReader([], LIMITS), f"file://{allowed}/below/a%20b.png").code == "file_refused"


# queue and time


def test_a_full_queue_refuses_and_says_when_to_try_again(loaded: Loaded) -> None:
    with serving(loaded, LIMITS, start_worker=False) as running:
        threads = [threading.Thread(target=running.post, args=(body(user("x")),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: running.server.worker.waiting == 2)
        reply = running.post(body(user("x")))
        assert (reply.status, reply.error["code"]) == (429, "queue_full") and reply.headers["retry-after"] == "1"
        assert running.metric("requests_waiting") == 2
        running.server.worker.start()
        for thread in threads:
            thread.join(60)
        assert running.post(body(user("x"))).status == 200
        wait_until(lambda: '{status="200"} 3' in running.get("/metrics").text)
        assert 'dart_train_requests_total{status="429"} 1' in running.get("/metrics").text


def test_time_limit_of_a_request_that_waits_and_of_one_that_runs(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ServerLimits(request_seconds=0.5)
    with serving(loaded, limits, start_worker=False) as running:
        reply = running.post(body(user("x")))
        assert (reply.status, reply.error["code"]) == (504, "timeout") and "0.5 s" in reply.error["message"]
        text = running.post(body(user("x"), stream=True)).text
        error = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
        assert error["code"] == "timeout"
        generate = loaded.model.generate
        monkeypatch.setattr(loaded.model, "generate", lambda **inputs: (time.sleep(0.6), generate(**inputs))[1])
        running.server.worker.start()
        assert running.post(body(user("x"))).status == 504
        monkeypatch.undo()


def test_a_client_that_goes_away_ends_its_request(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(loaded, start_worker=False) as running:
        host, port = running.address.removeprefix("http://").split(":")
        content = json.dumps(body(user("x"))).encode()
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        with socket.create_connection((host, int(port))) as client:
            client.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
            wait_until(lambda: running.server.worker.waiting == 1)
        wait_until(lambda: running.server.in_flight == 0)
        assert 'dart_train_requests_total{status="499"} 1' in running.get("/metrics").text
        running.server.worker.start()
        wait_until(lambda: running.server.worker.waiting == 0)
        assert running.post(body(user("x"))).status == 200
        assert running.metric("batch_size_count") == 1  # nothing was generated for the client that had gone


def test_metrics_are_prometheus_text(running: RunningServer) -> None:
    reply = running.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    types = {}
    for line in reply.text.splitlines():
        if line.startswith("# TYPE"):
            types[line.split()[2]] = line.split()[3]
        elif not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            base = name.split("{")[0]
            known = types.get(base) or types[base.rsplit("_", 1)[0]]
            assert known in ("counter", "gauge", "histogram") and float(value) >= 0
    assert types["dart_train_time_to_first_token_seconds"] == "histogram"
    assert send(running.address, "/health").json == {"status": "ok"}
