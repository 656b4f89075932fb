"""The server's answers are those of `chat`: alone, in a batch, in a stream; for every reduction that `load` gives."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dart_train
from dart_train.chat import generate_answers
from dart_train.checkpoints import Loaded
from dart_train.models.prompts import assistant_message, user_message
from dart_train.serving.batching import BatchingWorker, GenerationJob
from dart_train.serving.limits import ServerLimits
from tests.serving.clients import COMPLETIONS, Reply, RunningServer, body, serving, user, wait_until
from tests.zoo import make_image, save_folder, sentence

REDUCTIONS: dict[str, Any] = {
    "full tokens": None,
    "dart at K = 2": {"method": "dart", "keep": 8, "layer": 2},
    "dart at K = 0": {"method": "dart", "keep": 0.25, "layer": 0, "per": "image", "merge": "nearest"},
    "two stages": [{"method": "dart", "keep": 0.5, "layer": 1}, {"method": "dart", "keep": 6, "layer": 3}],
    "guidance by attention": {"method": "fastv", "keep": 8, "layer": 2},
}
# Text, and the images of one conversation.
QUESTIONS = [(sentence(3, 1), [1]), (sentence(9, 2), [2, 3]), (sentence(5, 3), []), (sentence(2, 4), [4])]


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(request.param, tmp_path_factory.mktemp("model") / request.param)


def load(folder: Path, reducer: Any) -> Loaded:
    return dart_train.load(folder, reducer=reducer, device="cpu", dtype="float32")


def bodies(**options: Any) -> list[dict[str, Any]]:
    return [body(user(text, [make_image(n) for n in images]), **options) for text, images in QUESTIONS]


def expected(loaded: Loaded, **options: Any) -> list[str]:
    conversations = [[user_message(text, [make_image(n) for n in images])] for text, images in QUESTIONS]
    return [generate_answers(loaded, [each], **{"max_new_tokens": 6, **options})[0] for each in conversations]


def together(running: RunningServer, contents: list[dict[str, Any]]) -> list[Reply]:
    """All are sent, wait together, and are then answered."""
    replies: list[Reply | None] = [None] * len(contents)

    def post(index: int) -> None:
        replies[index] = running.post(contents[index])

    threads = [threading.Thread(target=post, args=(index,)) for index in range(len(contents))]
    for thread in threads:
        thread.start()
    wait_until(lambda: running.server.worker.waiting == len(contents))
    running.server.worker.start()
    for thread in threads:
        thread.join(60)
    return [reply for reply in replies if reply is not None]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_batched_answers_are_those_of_each_alone(folder: Path, reduction: str) -> None:
    loaded = load(folder, REDUCTIONS[reduction])
    alone = expected(loaded)
    assert len(set(alone)) > 1
    with serving(loaded, start_worker=False) as running:
        replies = together(running, bodies())
        assert [reply.answer for reply in replies] == alone
        assert running.metric("batch_size_count") == 1 and running.metric("batch_size_sum") == 4
        usage = [reply.json["usage"] for reply in replies]
        visual = [each["prompt_tokens_details"]["visual_tokens"] for each in usage]
        kept = [each["prompt_tokens_details"]["kept_visual_tokens"] for each in usage]
        assert visual[2] == kept[2] == 0 and all(visual[n] for n in (0, 1, 3))
        assert running.metric("visual_tokens_total") == sum(visual)
        assert running.metric("kept_visual_tokens_total") == sum(kept)
        if reduction == "full tokens":
            assert kept == visual
        else:
            assert all(0 < kept[n] < visual[n] for n in (0, 1, 3))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = save_folder("llava", tmp_path_factory.mktemp("model") / "llava")
    return load(folder, {"method": "dart", "keep": 8, "layer": 2})


@pytest.fixture(scope="module")
def running(llava: Loaded) -> Iterator[RunningServer]:
    with serving(llava) as server:
        yield server


def test_streamed_answers_are_the_complete_ones(llava: Loaded, running: RunningServer) -> None:
    for content, answer in zip(bodies(stream=True), expected(llava), strict=True):
        events = running.post(content).events
        choices = [event["choices"][0] for event in events]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == answer
        assert choices[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] in ("stop", "length")
        assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_a_stream_comes_while_the_answer_is_generated(running: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    read, add = threading.Event(), GenerationJob.add_token

    def add_token(job: GenerationJob, token: int) -> None:
        if len(job.text.ids) == 4:
            assert read.wait(30), "the first text did not come before the fifth token"
        add(job, token)

    monkeypatch.setattr(GenerationJob, "add_token", add_token)
    connection = http.client.HTTPConnection(running.address.removeprefix("http://"), timeout=60)
    content = json.dumps(bodies(stream=True)[0])
    connection.request("POST", COMPLETIONS, content, {"content-type": "application/json"})
    stream, lines = connection.getresponse(), []
    while line := stream.readline().strip():
        lines.append(line)
        stream.readline()
        if b'"content": "' in line and b'"content": ""' not in line:
            read.set()
    connection.close()
    assert read.is_set() and lines[-1] == b"data: [DONE]"


def test_a_stream_with_usage_ends_with_it(running: RunningServer) -> None:
    complete = running.post(bodies()[0]).json["usage"]
    events = running.post(bodies(stream=True, stream_options={"include_usage": True})[0]).events
    assert events[-1]["choices"] == [] and events[-1]["usage"] == complete
    assert complete["total_tokens"] == complete["prompt_tokens"] + complete["completion_tokens"]


def test_rows_of_a_batch_have_their_own_number_of_tokens(llava: Loaded) -> None:
    contents = [{**content, "max_tokens": 1 + 2 * n} for n, content in enumerate(bodies())]
    alone = [expected(llava, max_new_tokens=1 + 2 * n)[n] for n in range(4)]
    with serving(llava, start_worker=False) as server:
        replies = together(server, contents)
        assert server.metric("batch_size_count") == 1
    assert [reply.answer for reply in replies] == alone
    assert [reply.json["usage"]["completion_tokens"] for reply in replies] == [
        min(1 + 2 * n, reply.json["usage"]["completion_tokens"]) for n, reply in enumerate(replies)
    ]
    assert replies[0].json["choices"][0]["finish_reason"] == "length"


def test_turns_of_a_conversation(llava: Loaded, running: RunningServer) -> None:
    first = user_message(QUESTIONS[0][0], [make_image(1)])
    given = [user(QUESTIONS[0][0], [make_image(1)])]
    answer = running.post(body(*given)).answer
    conversation = [first, assistant_message(answer), user_message(sentence(4, 9))]
    again = [*given, {"role": "assistant", "content": answer}, {"role": "user", "content": sentence(4, 9)}]
    assert running.post(body(*again)).answer == generate_answers(llava, [conversation], max_new_tokens=6)[0]


def test_stop_texts_end_an_answer_and_are_not_part_of_it(llava: Loaded, running: RunningServer) -> None:
    answer = expected(llava, max_new_tokens=12)[0]
    assert len(answer) > 4
    stop = answer[len(answer) // 2 : len(answer) // 2 + 2]
    content = {**bodies()[0], "max_tokens": 12, "stop": ["never in it", stop]}
    reply = running.post(content)
    assert reply.answer == answer[: answer.index(stop)].strip()
    assert reply.json["choices"][0]["finish_reason"] == "stop"
    events = running.post({**content, "stream": True}).events
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == reply.answer


def test_a_seed_draws_the_same_again_and_in_company(llava: Loaded) -> None:
    drawn = {"temperature": 1.5, "seed": 7, "max_tokens": 10}
    with serving(llava, start_worker=False) as server:
        replies = together(server, [bodies(**drawn)[0], bodies(**drawn)[0], bodies(temperature=1.5)[1]])
        assert replies[0].answer == replies[1].answer == server.post(bodies(**drawn)[0]).answer
        other = server.post(bodies(**{**drawn, "seed": 8})[0]).answer
    assert other != replies[0].answer


def test_another_budget_holds_for_its_request_alone(llava: Loaded, running: RunningServer) -> None:
    reply = running.post(bodies(keep=4)[0])
    assert reply.json["usage"]["prompt_tokens_details"]["kept_visual_tokens"] == 4
    assert running.post(bodies()[0]).json["usage"]["prompt_tokens_details"]["kept_visual_tokens"] == 8
    assert [reducer.keep for reducer in llava.attached.reducers] == [8]  # type: ignore[union-attr]


def test_an_error_of_one_row_is_not_that_of_its_batch(llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, generate = expected(llava), llava.model.generate

    def failing(*args: Any, **inputs: Any) -> torch.Tensor:
        if inputs["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("out of memory")
        result: torch.Tensor = generate(*args, **inputs)
        return result

    monkeypatch.setattr(llava.model, "generate", failing)
    with serving(llava, start_worker=False) as server:
        assert [reply.answer for reply in together(server, bodies())] == alone


def test_more_requests_than_a_batch_are_all_answered(llava: Loaded) -> None:
    alone = expected(llava)
    with serving(llava, ServerLimits(batch=3), start_worker=False) as server:
        replies = together(server, [*bodies(), *bodies()])
        assert [reply.answer for reply in replies] == [*alone, *alone]
        assert server.metric("batch_size_count") == 3
        assert server.metric("time_to_first_token_seconds_count") == 8


def test_requests_of_different_settings_wait_in_turn(llava: Loaded) -> None:
    keeps = [4, 8, 4, 8]
    with serving(llava, start_worker=False) as server:
        replies = together(server, [{**bodies()[n], "keep": keep} for n, keep in enumerate(keeps)])
        assert server.metric("batch_size_count") == 2
    for reply, keep in zip(replies, keeps, strict=True):
        details = reply.json["usage"]["prompt_tokens_details"]
        assert details["kept_visual_tokens"] == min(keep, details["visual_tokens"])


LONG = 160


def ask_during_a_long_answer(running: RunningServer, long: dict[str, Any], short: list[dict[str, Any]]) -> Any:
    """(the long answer, the short ones in order, whether each came before the long one's end)"""
    replies: dict[str, Reply] = {}
    thread = threading.Thread(target=lambda: replies.update(long=running.post(long)))
    thread.start()
    wait_until(lambda: running.server.worker.running == 1)
    answers, early = [], []
    for content in short:
        answers.append(running.post(content))
        early.append(thread.is_alive())
    thread.join(120)
    return replies["long"], answers, early


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers end at their number of tokens, and tokens take a while."""
    monkeypatch.setattr(BatchingWorker, "_end_tokens", lambda self: frozenset())
    add = GenerationJob.add_token

    def add_token(job: GenerationJob, token: int) -> None:
        time.sleep(0.01)
        add(job, token)

    monkeypatch.setattr(GenerationJob, "add_token", add_token)


@pytest.mark.parametrize("reduction", ["dart at K = 2", "two stages"])
def test_a_long_answer_does_not_delay_later_ones(folder: Path, reduction: str, endless: None) -> None:
    """Batches take turns, and answer as they do alone: at budgets and with seeds of their own."""
    loaded = load(folder, REDUCTIONS[reduction])
    loaded.model.generation_config.eos_token_id = None
    stages = len(loaded.attached.reducers)  # type: ignore[union-attr]
    long = {**bodies()[0], "max_tokens": LONG, "keep": [3] * stages}
    short = [bodies()[1], {**bodies()[3], "keep": [4] * stages}, {**bodies()[1], "temperature": 1.5, "seed": 7}]
    with serving(loaded) as running:
        alone = [running.post(content).answer for content in (long, *short)]
    limits = ServerLimits(wait_seconds=0.0)
    with serving(loaded, limits) as running:
        found, answers, early = ask_during_a_long_answer(running, long, short)
        assert [found.answer, *(reply.answer for reply in answers)] == alone
        assert early == [True] * 3 and running.server.worker.running == 0
    with serving(loaded, ServerLimits(wait_seconds=0.0, batches=1)) as running:
        found, answers, early = ask_during_a_long_answer(running, long, short[:1])
        assert [found.answer, answers[0].answer] == alone[:2] and early == [False]


def test_drawn_answers_that_take_turns_draw_the_same(llava: Loaded, endless: None) -> None:
    llava.model.generation_config.eos_token_id = None
    long = {**bodies()[0], "max_tokens": LONG, "temperature": 1.5, "seed": 3}
    short = [{**bodies()[1], "temperature": 1.5, "seed": 7}]
    with serving(llava, ServerLimits(wait_seconds=0.0)) as running:
        alone = [running.post(content).answer for content in (long, *short)]
        found, answers, early = ask_during_a_long_answer(running, long, short)
    assert [found.answer, answers[0].answer] == alone and early == [True]


def test_an_error_next_to_a_running_batch_is_tried_again_when_it_has_ended(
    llava: Loaded, monkeypatch: pytest.MonkeyPatch, endless: None
) -> None:
    """As where the memory is held by the batch that runs."""
    llava.model.generation_config.eos_token_id = None
    generate = llava.model.generate
    with serving(llava, ServerLimits(wait_seconds=0.0)) as running:
        alone = running.post(bodies()[1]).answer

        def failing(*args: Any, **inputs: Any) -> torch.Tensor:
            if len(running.server.worker._batches) > 1:
                raise torch.OutOfMemoryError("out of memory")
            result: torch.Tensor = generate(*args, **inputs)
            return result

        monkeypatch.setattr(llava.model, "generate", failing)
        long = {**bodies()[0], "max_tokens": LONG}
        found, answers, early = ask_during_a_long_answer(running, long, bodies()[1:2])
    assert found.status == 200 and answers[0].answer == alone and early == [False]
