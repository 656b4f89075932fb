"""The plug-in without lmms-eval: its answers equal those of the model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

import dart_train
from dart_train import DART
from dart_train.chat import chat_inputs, generate_answers
from dart_train.checkpoints.scorer_file import write_scorers
from dart_train.lmms_eval.answering import (
    VisualTokenCount,
    answer,
    from_messages,
    from_question,
    generate_options,
    likelihood,
    stop_texts,
    truncate_at,
)
from dart_train.lmms_eval.loading import open_model
from dart_train.models.prompts import assistant_message, user_message
from dart_train.reduction.scorer import TokenScorer
from tests.fixtures.run_scene import ROOT
from tests.zoo import FAMILIES, make_image, save_folder, sentence


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a scorer for the layer that `learned` selects at."""
    folder = save_folder("llava", tmp_path_factory.mktemp("model") / "llava")
    model = FAMILIES["llava"].model()
    scorer = TokenScorer(model.config.get_text_config().hidden_size)
    write_scorers(folder, {f"layer_2.{name}": tensor for name, tensor in scorer.state_dict().items()}, model)
    return folder


def test_entry_point_exists() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    (place,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "lmms_eval.models"
    ].values()
    module, name = place.split(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert "lmms_eval" not in sys.modules or "site-packages" in str(sys.modules["lmms_eval"].__file__)


def test_batched_answers_equal_single_ones(folder: Path) -> None:
    loaded = open_model({"pretrained": str(folder), "reducer": "dart", "keep": 8}, "cpu")
    conversations = [
        [user_message(sentence(3, 1), [make_image(1)])],
        [user_message(sentence(6, 2), [make_image(2), make_image(3)])],
    ]
    count = VisualTokenCount()
    options = {"max_new_tokens": 5, "temperature": 0, "until": ["\n\n"]}
    together = answer(loaded, conversations, options, count)
    assert [each.text for each in together] == [
        generate_answers(loaded, [one], max_new_tokens=5)[0] for one in conversations
    ]
    assert (count.before, count.kept) == (3 * 64, 2 * 8)
    assert [each.tokens_in for each in together] == [
        chat_inputs(loaded, [one])["input_ids"].shape[1] for one in conversations
    ]
    assert all(1 <= each.tokens_out <= 5 for each in together)


@pytest.mark.parametrize("reducer", ["none", "dart", "learned"])
def test_likelihood_equals_that_of_generation(folder: Path, reducer: str) -> None:
    """Token by token: each probability from a prefill of all that comes before it, chosen by the prompt alone."""
    keep = {} if reducer == "none" else {"keep": 8}
    loaded = open_model({"pretrained": str(folder), "reducer": reducer, **keep}, "cpu")
    conversation = [user_message(sentence(4, 1), [make_image(1)])]
    found = likelihood(loaded, conversation, "red circle")
    inputs = chat_inputs(loaded, [conversation])
    tokens = loaded.processor.tokenizer("red circle", add_special_tokens=False)["input_ids"]
    written = loaded.model.generate(
        **inputs, max_new_tokens=len(tokens), do_sample=False, output_logits=True, return_dict_in_generate=True,
        logits_processor=[Forced(inputs["input_ids"].shape[1], tokens)],
    )  # fmt: skip
    each = [step.log_softmax(-1)[0, token] for step, token in zip(written.logits, tokens, strict=True)]
    assert found.log_probability == pytest.approx(float(sum(each)), rel=1e-4)
    assert found.loss == pytest.approx(-found.log_probability / len(tokens))
    assert found.greedy == all(int(s.argmax()) == t for s, t in zip(written.logits, tokens, strict=True))


class Forced:
    """Makes generation write given tokens."""

    def __init__(self, prompt: int, tokens: list[int]) -> None:
        self.prompt, self.tokens = prompt, tokens

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[ids.shape[1] - self.prompt]] = 0
        return forced


def test_own_answer_of_the_model_is_greedy(folder: Path) -> None:
    loaded = open_model({"pretrained": str(folder), "reducer": "dart", "keep": 8}, "cpu")
    conversation = [user_message(sentence(4, 3), [make_image(4)])]
    inputs = chat_inputs(loaded, [conversation])
    first = loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1]
    word = loaded.processor.tokenizer.decode(first)
    if loaded.processor.tokenizer(word, add_special_tokens=False)["input_ids"] == [int(first)]:
        assert likelihood(loaded, conversation, word).greedy
    assert not likelihood(loaded, conversation, "red circle red").greedy


def test_generation_is_greedy_unless_a_task_samples() -> None:
    assert generate_options({"temperature": 0, "top_p": 1.0, "num_beams": 1, "until": ["x"]}) == {
        "do_sample": False, "max_new_tokens": 1024, "num_beams": 1,
    }  # fmt: skip
    assert generate_options({"temperature": 0.7, "max_new_tokens": 9})["do_sample"] is True
    assert generate_options({"do_sample": False, "temperature": 0.7}) == {"do_sample": False, "max_new_tokens": 1024}


def test_answers_end_at_stop_texts() -> None:
    assert truncate_at("red\n\nbecause", ["\n\n"]) == "red" and truncate_at("red", ["\n\n"]) == "red"
    assert truncate_at("\n\nred\n\nx", ["\n\n"]).strip() == "red" and truncate_at("a. b; c", [";", "."]) == "a"
    assert stop_texts({"until": "x"}) == ["x"] and stop_texts({"until": ["x", ""]}) == ["x"] and stop_texts({}) == []


def test_image_token_in_the_text_is_removed(folder: Path) -> None:
    processor = dart_train.load(folder, device="cpu").processor
    (turn,) = from_question(processor, f"{processor.image_token}\nwhat is it", [make_image(1).convert("L")])
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
    assert turn["content"][1]["text"] == "what is it" and turn["content"][0]["image"].mode == "RGB"
    assert from_messages(processor, [turn, assistant_message("yes")]) == [turn, assistant_message("yes")]
    with pytest.raises(NotImplementedError, match="the task has a part of type video"):
        from_messages(processor, [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}])


def test_options_become_a_reducer(folder: Path) -> None:
    loaded = open_model({"pretrained": str(folder), "reducer": "dart", "keep": 0.5, "layer": 3, "rule": "paper"}, "cpu")
    assert loaded.attached is not None and loaded.attached.reducers == (DART(keep=0.5, layer=3, rule="paper"),)
    assert open_model({"pretrained": str(folder)}, "cpu").attached is None


@pytest.mark.parametrize("given,message", [
    ({"pretraind": "x"}, "pretraind: unknown, did you mean pretrained?; pretrained: missing"),
    ({"pretrained": "./gone", "keep": 0}, "keep=0: expected a number of tokens"),
    ({"pretrained": "./gone"}, "there is no such folder"),
    ({"layer": 3, "pretrained": "x"}, "layer: options of which reducer? give reducer="),
])  # fmt: skip
def test_wrong_model_args_are_reported_together(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        open_model(given, None)
    assert message in str(error.value)
