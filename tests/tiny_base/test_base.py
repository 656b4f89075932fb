"""The base model: every stage learns, what is packed together is as if asked alone, a kill costs nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from dart_train.__main__ import main
from dart_train.config.errors import RecipeError
from dart_train.models.processors import load_processor
from data.shapes import LEVELS, draw, questions, scene
from data.tiny_base.train.command import train
from data.tiny_base.train.mask import masked
from data.tiny_base.train.model import TrainingBundle
from data.tiny_base.train.processor import UNKNOWN, processor, tokenizer
from data.tiny_base.train.recipe import Base, Stage, load_base
from data.tiny_base.train.samples import NO_LABEL, lesson, pack
from data.tiny_base.train.stages import Stages

ROOT = Path(__file__).parents[2]
RECIPE = """
pictures: {{difficulty: tiny}}
vision: {{patch: 16, width: 16, layers: 1, heads: 2, mlp: 16}}
language: {{width: 16, layers: 3, heads: 2, mlp: 16}}
save_steps: 1
stages:
  vision: {{steps: 3, batch_size: 2, learning_rate: 1.0e-2}}
  language: {{steps: 3, batch_size: 2, learning_rate: 1.0e-2, blind_layers: 2}}
  projector: {{steps: 3, batch_size: 2, learning_rate: 1.0e-2}}
  joint: {{steps: 3, batch_size: 2, learning_rate: 1.0e-2}}
measure: {{questions: 1, budgets: [1.0, 0.5]}}
output_dir: {folder}/model
work_dir: {folder}/stages
"""


def recipe_in(folder: Path, *overrides: str) -> Base:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(folder=folder))
    return load_base(file, overrides)


def test_the_verb_leaves_a_model_that_transformers_loads_and_a_card(tmp_path: Path) -> None:
    recipe_in(tmp_path)
    assert main(["base", str(tmp_path / "recipe.yaml")]) == 0
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    made = load_processor(str(tmp_path / "model"))
    batch = made(text="<s><user><image>Is there a red circle?<assistant>", images=[draw_one()], return_tensors="pt")
    assert model.generate(**batch, max_new_tokens=2).shape[1] > batch["input_ids"].shape[1]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "50.0%" in card and "| beside | 1 |" in card


@pytest.mark.parametrize("name", ["vision", "language", "projector", "joint"])
def test_each_stage_moves_its_own_weights_alone(tmp_path: Path, name: str) -> None:
    recipe = recipe_in(tmp_path)
    workshop = TrainingBundle(recipe)
    stages = Stages(recipe, workshop, processor(96, 16).image_processor)
    stage = recipe.stages.named()[name]
    learning = {id(weight) for weight in stages.learning(name)}
    loss, right = stages.loss(name, stage)(lesson(recipe, stage, 0))
    loss.backward()
    moved = {id(weight) for weight in workshop.parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
    assert learning and len(moved & learning) > 0.6 * len(learning)
    assert right <= 1


def test_what_a_kill_interrupted_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    train(recipe_in(whole), until="joint")
    workshop = torch.load(whole / "stages" / "joint.pt", weights_only=True)["workshop"]
    train(recipe_in(cut), until="vision")
    with pytest.raises(KeyboardInterrupt):
        train_and_be_killed(recipe_in(cut))
    train(recipe_in(cut), until="joint")
    again = torch.load(cut / "stages" / "joint.pt", weights_only=True)["workshop"]
    assert all(torch.equal(workshop[name], again[name]) for name in workshop)


def test_stages_of_another_recipe_are_not_taken_up(tmp_path: Path) -> None:
    train(recipe_in(tmp_path), until="vision")
    with pytest.raises(ValueError, match=r"vision\.pt was learned by another recipe"):
        train(recipe_in(tmp_path, "stages.joint.steps=4"), until="vision")


def train_and_be_killed(recipe: Base) -> None:
    """In the middle of the language stage."""
    calls = 0
    answering = Stages._answering

    def killed(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return answering(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "_answering", killed)
        train(recipe, until="joint")


def draw_one() -> object:
    return draw(scene(0, "train", 0, "tiny"))


def test_questions_packed_behind_a_picture_are_answered_as_if_asked_alone(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    workshop = TrainingBundle(recipe).eval()
    made = processor(96, 16)
    stages = Stages(recipe, workshop, made.image_processor)
    together = lesson(recipe, recipe.stages.joint, 0)
    loss, _ = stages.loss("joint", recipe.stages.joint)(together)
    alone, tokens = 0.0, 0
    for one in together.scenes:
        for asked in questions(one)[:7]:
            content = [{"type": "image"}, {"type": "text", "text": asked.question}]
            turns = [{"role": "user", "content": content}, {"role": "assistant", "content": asked.answer}]
            batch = made(text=made.apply_chat_template(turns), images=[draw(one)], return_tensors="pt")
            answer = len(made.tokenizer(asked.answer)["input_ids"]) + 1
            labels = batch["input_ids"].clone()
            labels[:, :-answer] = NO_LABEL
            alone += float(workshop.model(**batch, labels=labels).loss.detach()) * answer
            tokens += answer
    assert float(loss.detach()) == pytest.approx(alone / tokens, rel=1e-4)


def test_a_conversation_is_packed_as_the_chat_template_writes_it(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    workshop, made = TrainingBundle(recipe).eval(), processor(96, 16)
    loss_of = Stages(recipe, workshop, made.image_processor).loss("joint", recipe.stages.joint)
    whole = lesson(recipe, Stage(steps=1, batch_size=1, learning_rate=1.0, conversations=1.0), 0)
    turns: list[dict[str, object]] = []
    for asked in questions(whole.scenes[0])[:7]:
        picture = [] if turns else [{"type": "image"}]
        turns += [{"role": "user", "content": [*picture, {"type": "text", "text": asked.question}]}]
        turns += [{"role": "assistant", "content": asked.answer}]
    batch = made(text=made.apply_chat_template(turns), images=[draw(whole.scenes[0])], return_tensors="pt")
    assert whole.packed.ids.tolist() == batch["input_ids"].tolist()
    expected = workshop.model(**batch, labels=whole.packed.labels).loss.detach()
    assert float(loss_of(whole)[0].detach()) == pytest.approx(float(expected), rel=1e-4)


def test_a_packed_question_has_the_tokens_of_the_chat_template() -> None:
    made, pair = processor(96, 16), ("Which shape is red?", "circle")
    content = [{"type": "image"}, {"type": "text", "text": pair[0]}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": pair[1]}]
    batch = made(text=made.apply_chat_template(turns), images=[draw_one()], return_tensors="pt")
    assert pack([[pair]], torch.ones(1, 36, dtype=torch.bool)).ids.tolist() == batch["input_ids"].tolist()


def test_in_blind_layers_no_question_sees_the_picture(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    workshop = TrainingBundle(recipe).eval()
    packed = lesson(recipe, recipe.stages.language, 0).packed
    image, language = workshop.model.config.image_token_id, workshop.model.model.language_model
    open_, covered = packed.mask(image)
    embeds = workshop.model.get_input_embeddings()(packed.ids)
    other = torch.where((packed.ids == image).unsqueeze(-1), torch.randn_like(embeds), embeds)
    text = packed.group > 0

    def states(given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with masked(language.layers, 2, covered):
            return language(
                inputs_embeds=given, attention_mask=open_, position_ids=packed.positions, output_hidden_states=True
            ).hidden_states

    one, two = states(embeds), states(other)
    assert torch.equal(one[2][text], two[2][text])
    assert not torch.allclose(one[3][text], two[3][text])


@pytest.mark.parametrize("difficulty", LEVELS)
def test_every_answer_comes_back_as_it_was_and_no_word_is_unknown(difficulty: str) -> None:
    words = tokenizer()
    for index in range(20):
        for asked in questions(scene(1, "test", index, difficulty)):
            ids = words(asked.answer)["input_ids"]
            assert words.decode(ids) == asked.answer
            assert words.unk_token_id not in [*ids, *words(asked.question)["input_ids"]], f"{UNKNOWN} in {asked}"


def test_a_recipe_tells_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.compile("3 problems.*vision.batch_size.*joint.steps.*vision.hats", re.S)):
        recipe_in(tmp_path, "vision.hats=2", "stages.joint.steps=0", "stages.vision.batch_size=none")
    with pytest.raises(RecipeError, match=r"a divisor of language\.width = 16"):
        recipe_in(tmp_path, "language.heads=3")
