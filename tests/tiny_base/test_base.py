"""The base model: every stage trains its own weights, packed questions equal single ones, a killed run resumes."""

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
from data.tiny_base.train.mask import additive, attention_masks, mask_first_layers
from data.tiny_base.train.model import TrainingBundle
from data.tiny_base.train.processor import UNKNOWN, make_processor, make_tokenizer
from data.tiny_base.train.recipe import BaseRecipe, Stage, load_base
from data.tiny_base.train.samples import IGNORED, pack, scene_batch
from data.tiny_base.train.stages import StageLosses

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


def recipe_in(folder: Path, *overrides: str) -> BaseRecipe:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(folder=folder))
    return load_base(file, overrides)


def test_base_command_writes_a_model_that_transformers_loads_and_a_card(tmp_path: Path) -> None:
    recipe_in(tmp_path)
    assert main(["base", str(tmp_path / "recipe.yaml")]) == 0
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    made = load_processor(str(tmp_path / "model"))
    batch = made(text="<s><user><image>Is there a red circle?<assistant>", images=[draw_one()], return_tensors="pt")
    assert model.generate(**batch, max_new_tokens=2).shape[1] > batch["input_ids"].shape[1]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "50.0%" in card and "| beside | 1 |" in card


@pytest.mark.parametrize("name", ["vision", "language", "projector", "joint"])
def test_each_stage_trains_only_its_own_weights(tmp_path: Path, name: str) -> None:
    recipe = recipe_in(tmp_path)
    bundle = TrainingBundle(recipe)
    losses = StageLosses(recipe, bundle, make_processor(96, 16).image_processor)
    stage = recipe.stages.named()[name]
    learning = {id(weight) for weight in losses.trained(name)}
    loss, right = losses.loss(name, stage)(scene_batch(recipe, stage, 0))
    loss.backward()
    moved = {id(weight) for weight in bundle.parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
    assert learning and len(moved & learning) > 0.6 * len(learning)
    assert right <= 1


def test_killed_training_resumes_with_the_same_result(tmp_path: Path) -> None:
    complete, killed = tmp_path / "complete", tmp_path / "killed"
    for folder in (complete, killed):
        folder.mkdir()
    train(recipe_in(complete), until="joint")
    bundle = torch.load(complete / "stages" / "joint.pt", weights_only=True)["bundle"]
    train(recipe_in(killed), until="vision")
    with pytest.raises(KeyboardInterrupt):
        train_and_be_killed(recipe_in(killed))
    train(recipe_in(killed), until="joint")
    resumed = torch.load(killed / "stages" / "joint.pt", weights_only=True)["bundle"]
    assert all(torch.equal(bundle[name], resumed[name]) for name in bundle)


def test_stages_of_another_recipe_are_not_resumed(tmp_path: Path) -> None:
    train(recipe_in(tmp_path), until="vision")
    with pytest.raises(ValueError, match=r"vision\.pt was trained with another recipe"):
        train(recipe_in(tmp_path, "stages.joint.steps=4"), until="vision")


def train_and_be_killed(recipe: BaseRecipe) -> None:
    """In the middle of the language stage."""
    calls = 0
    answering = StageLosses.answer_loss

    def killed(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return answering(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageLosses, "answer_loss", killed)
        train(recipe, until="joint")


def draw_one() -> object:
    return draw(scene(0, "train", 0, "tiny"))


def test_loss_of_packed_questions_equals_that_of_single_questions(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    bundle = TrainingBundle(recipe).eval()
    made = make_processor(96, 16)
    losses = StageLosses(recipe, bundle, made.image_processor)
    together = scene_batch(recipe, recipe.stages.joint, 0)
    loss, _ = losses.loss("joint", recipe.stages.joint)(together)
    alone, tokens = 0.0, 0
    for one in together.scenes:
        for pair in questions(one)[:7]:
            content = [{"type": "image"}, {"type": "text", "text": pair.question}]
            turns = [{"role": "user", "content": content}, {"role": "assistant", "content": pair.answer}]
            batch = made(text=made.apply_chat_template(turns), images=[draw(one)], return_tensors="pt")
            answer = len(made.tokenizer(pair.answer)["input_ids"]) + 1
            labels = batch["input_ids"].clone()
            labels[:, :-answer] = IGNORED
            alone += float(bundle.model(**batch, labels=labels).loss.detach()) * answer
            tokens += answer
    assert float(loss.detach()) == pytest.approx(alone / tokens, rel=1e-4)


def test_packed_conversation_has_the_tokens_of_the_chat_template(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    bundle, made = TrainingBundle(recipe).eval(), make_processor(96, 16)
    loss_of = StageLosses(recipe, bundle, made.image_processor).loss("joint", recipe.stages.joint)
    batch = scene_batch(recipe, Stage(steps=1, batch_size=1, learning_rate=1.0, conversations=1.0), 0)
    turns: list[dict[str, object]] = []
    for pair in questions(batch.scenes[0])[:7]:
        image = [] if turns else [{"type": "image"}]
        turns += [{"role": "user", "content": [*image, {"type": "text", "text": pair.question}]}]
        turns += [{"role": "assistant", "content": pair.answer}]
    inputs = made(text=made.apply_chat_template(turns), images=[draw(batch.scenes[0])], return_tensors="pt")
    assert batch.packed.ids.tolist() == inputs["input_ids"].tolist()
    expected = bundle.model(**inputs, labels=batch.packed.labels).loss.detach()
    assert float(loss_of(batch)[0].detach()) == pytest.approx(float(expected), rel=1e-4)


def test_packed_question_has_the_tokens_of_the_chat_template() -> None:
    made, pair = make_processor(96, 16), ("Which shape is red?", "circle")
    content = [{"type": "image"}, {"type": "text", "text": pair[0]}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": pair[1]}]
    batch = made(text=made.apply_chat_template(turns), images=[draw_one()], return_tensors="pt")
    assert pack([[pair]], torch.ones(1, 36, dtype=torch.bool)).ids.tolist() == batch["input_ids"].tolist()


def test_text_does_not_attend_to_the_image_in_blind_layers(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    bundle = TrainingBundle(recipe).eval()
    packed = scene_batch(recipe, recipe.stages.language, 0).packed
    image, language = bundle.model.config.image_token_id, bundle.model.model.language_model
    mask, without_image = map(additive, attention_masks(packed, image))
    embeds = bundle.model.get_input_embeddings()(packed.ids)
    other = torch.where((packed.ids == image).unsqueeze(-1), torch.randn_like(embeds), embeds)
    text = packed.group > 0

    def states(given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with mask_first_layers(language.layers, 2, without_image):
            return language(
                inputs_embeds=given, attention_mask=mask, position_ids=packed.positions, output_hidden_states=True
            ).hidden_states

    one, two = states(embeds), states(other)
    assert torch.equal(one[2][text], two[2][text])
    assert not torch.allclose(one[3][text], two[3][text])


@pytest.mark.parametrize("difficulty", LEVELS)
def test_tokenizer_decodes_every_answer_and_knows_every_word(difficulty: str) -> None:
    words = make_tokenizer()
    for index in range(20):
        for pair in questions(scene(1, "test", index, difficulty)):
            ids = words(pair.answer)["input_ids"]
            assert words.decode(ids) == pair.answer
            assert words.unk_token_id not in [*ids, *words(pair.question)["input_ids"]], f"{UNKNOWN} in {pair}"


def test_all_problems_of_a_recipe_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=re.compile("3 problems.*vision.batch_size.*joint.steps.*vision.hats", re.S)):
        recipe_in(tmp_path, "vision.hats=2", "stages.joint.steps=0", "stages.vision.batch_size=none")
    with pytest.raises(RecipeError, match=r"a divisor of language\.width = 16"):
        recipe_in(tmp_path, "language.heads=3")
