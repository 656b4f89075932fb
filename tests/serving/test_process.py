"""The command itself, as a process: it answers as `chat` does, ends by SIGTERM without losing a request, and holds a
load."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dart_train
from dart_train.chat import generate_answers
from dart_train.models.prompts import user_message
from tests.serving.clients import COMPLETIONS, Reply, body, send, user, wait_until
from tests.zoo import make_image

ROOT = Path(__file__).parents[2]
BASE = ROOT / "data" / "tiny_base"
QUESTIONS = ["Which shape is yellow?", "What word is written?", "How many circles?", "Is there a red square?"]
REDUCTION = ["--keep", "16", "--dtype", "float32", "--device", "cpu", "--name", "tiny"]


@contextmanager
def process(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of `dart_train serve` on the tiny base."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "dart_train", "serve", str(BASE), "--port", "0", *REDUCTION, *options]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout is not None
    lines = []
    try:
        for line in running.stdout:
            lines.append(line)
            if found := re.search(r"serve: tiny at (http://127\.0\.0\.1:\d+)/v1", line):
                break
        else:
            raise AssertionError("".join(lines))
        yield found[1], running
    finally:
        running.kill()
        running.wait(20)
        running.stdout.close()


def questions() -> list[tuple[str, list[int]]]:
    return [(text, [number] if number else []) for number, text in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def answers() -> list[str]:
    loaded = dart_train.load(BASE, keep=16, device="cpu", dtype="float32")
    asked = [[user_message(text, [make_image(n) for n in images])] for text, images in questions()]
    return [generate_answers(loaded, [each], max_new_tokens=6)[0] for each in asked]


def bodies(**options: Any) -> list[dict[str, Any]]:
    return [body(user(text, [make_image(n) for n in images]), **options) for text, images in questions()]


def in_threads(jobs: list[Callable[[], None]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    return threads


def test_answers_then_sigterm_drains(answers: list[str]) -> None:
    with process("--max-batch", "1") as (address, running):
        assert [send(address, COMPLETIONS, content).answer for content in bodies()] == answers
        assert send(address, "/health").status == 200

        replies: dict[int, Reply] = {}

        def post(number: int) -> None:
            replies[number] = send(address, COMPLETIONS, bodies()[number % 4])

        threads = in_threads([lambda n=n: post(n) for n in range(24)])  # type: ignore[misc]
        wait_until(lambda: re.search(r"requests_waiting (8|9|1\d|2\d)\n", send(address, "/metrics").text))
        running.send_signal(signal.SIGTERM)
        wait_until(lambda: send(address, "/health").status == 503)
        refused = send(address, COMPLETIONS, bodies()[0])
        assert (refused.status, refused.error["code"]) == (503, "draining")
        for thread in threads:
            thread.join(120)
        # All that was accepted is answered; some may have come after the signal, and were refused.
        late = {n for n, reply in replies.items() if reply.status == 503 and reply.error["code"] == "draining"}
        accepted = sorted(set(range(24)) - late)
        assert len(replies) == 24 and len(accepted) >= 8
        assert [replies[n].answer for n in accepted] == [answers[n % 4] for n in accepted]
        assert running.wait(30) == 0
        assert running.stdout is not None and "serve: stopped" in running.stdout.read()


def test_wrong_options_are_reported_before_weights_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    from dart_train.__main__ import main

    assert main(["serve", str(BASE), "--images", "no/such/folder"]) == 2
    assert "--images no/such/folder: not a folder" in capsys.readouterr().err
    assert main(["serve", str(ROOT / "recipes"), "--port", "0"]) == 2
    assert "serve: " in capsys.readouterr().err
    assert main(["serve", str(BASE), "--host", "203.0.113.1"]) == 2  # an address that this machine does not have
    err = capsys.readouterr().err
    assert "can be reached from other machines; give --api-key" in err and "--host 203.0.113.1" in err


@pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="the openai package is not installed")
def test_openai_client(answers: list[str]) -> None:
    import openai

    with process("--api-key", "secret") as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret")
        content = bodies()[1]
        assert [model.id for model in client.models.list()] == ["tiny"]
        complete = client.chat.completions.create(**content)
        assert complete.choices[0].message.content == answers[1] and complete.usage.prompt_tokens > 144
        chunks = client.chat.completions.create(**content, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answers[1]
        with pytest.raises(openai.BadRequestError, match="does not support"):
            client.chat.completions.create(**content, n=2)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong").models.list()


@pytest.mark.slow
def test_a_load_of_concurrent_clients_loses_nothing(answers: list[str]) -> None:
    """DART_TRAIN_LOAD_SECONDS: how long it lasts (20)."""
    clients, seconds = 6, float(os.environ.get("DART_TRAIN_LOAD_SECONDS", 20))
    sent: Counter[str] = Counter()
    wrong: list[str] = []

    with process() as (address, running):
        end = time.monotonic() + seconds

        def ask(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < end:
                which, streamed = draw.randrange(4), draw.random() < 0.5
                reply = send(address, COMPLETIONS, bodies(stream=streamed)[which])
                text = streamed_text(reply) if streamed else reply.answer
                sent["streamed" if streamed else "complete"] += 1
                if text != answers[which]:
                    wrong.append(f"{text!r} for {answers[which]!r}")

        for thread in in_threads([lambda n=n: ask(n) for n in range(clients)]):  # type: ignore[misc]
            thread.join(seconds + 120)
        page = send(address, "/metrics").text
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    total = sum(sent.values())
    batches = int(re.findall(r"batch_size_count (\d+)", page)[0])
    print(f"{total} requests in {seconds:g} s ({dict(sent)}), {batches} batches")
    assert not wrong and total > clients and sent["streamed"] and sent["complete"]
    assert f'dart_train_requests_total{{status="200"}} {total}\n' in page and page.count("status=") == 1
    assert f"time_to_first_token_seconds_count {total}\n" in page
    assert batches < total  # some were answered together


def streamed_text(reply: Reply) -> str:
    assert reply.status == 200, reply.text
    return "".join(event["choices"][0]["delta"].get("content", "") for event in reply.events)
