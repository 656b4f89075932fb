"""QLoRA: linear layers of the language model in 4 or 8 bit below the adapters; and complete modules next to them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import nn

import dart_train
from dart_train.common.distributed import RankInfo
from dart_train.config import RecipeError, load_recipe
from dart_train.exporting import verify, verify_process
from dart_train.models.loading import WeightsSource, build_meta_model
from dart_train.models.quantization import make_quantization, modules_kept_precise
from dart_train.training.run import prepare
from dart_train.training.trainable import choose_parameters, load_model
from tests.fixtures.rank_jobs import Job, RankRuns, stage_jobs
from tests.fixtures.run_scene import losses, make_recipe
from tests.fixtures.runs import logits

SHORT = ["train.per_device_batch_size=2", "train.save_steps=2", "train.max_steps=4", "train.learning_rate=1e-2"]
BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not BITSANDBYTES, reason="needs the package bitsandbytes")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_recipe_reaches_the_quantization_config(kind: str) -> None:
    made = make_quantization(kind, torch.bfloat16, ["lm_head"])
    assert (made.load_in_4bit, made.bnb_4bit_quant_type, made.bnb_4bit_compute_dtype) == (True, kind, torch.bfloat16)
    assert made.bnb_4bit_use_double_quant and made.llm_int8_skip_modules == ["lm_head"]
    assert make_quantization("int8", torch.bfloat16, ()).load_in_8bit


def test_only_linear_layers_of_the_language_model_are_quantized(recipe: Path) -> None:
    model = build_meta_model(WeightsSource(load_recipe(recipe).model.path))
    precise = modules_kept_precise(model, ["layers.1.mlp.up_proj"])
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantized = linear - set(precise)
    assert quantized and all("language_model.layers" in name for name in quantized)
    assert {name for name in linear if "language_model.layers" in name} - quantized == {
        "model.language_model.layers.1.mlp.up_proj"
    }


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["parts.language={mode: full}"], "cannot be trained"),
        (["train.zero_stage=3"], "cannot be partitioned"),
    ],
)
def test_bad_combinations_are_refused(recipe: Path, more: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=f"model.quantization: nf4.*{words}"):
        load_recipe(recipe, ["model.quantization=nf4", *more])


def test_deepspeed_file_with_stage_three_is_refused(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": true}}')
    read = load_recipe(recipe, ["model.quantization=nf4", f"train.deepspeed={file}"])
    with pytest.raises(ValueError, match="cannot be partitioned"):
        prepare(read, RankInfo(0, 1, 1, False))


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_run_trains_and_resumes(recipe: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    more = [*SHORT, f"model.quantization={kind}", f"train.output_dir={run}"]
    dart_train.train(recipe, more)
    uninterrupted = [line["loss"] for line in losses(run)]
    assert uninterrupted[-1] < uninterrupted[0]
    shutil.rmtree(run / "checkpoint-4")
    dart_train.train(recipe, more)
    assert [line["loss"] for line in losses(run)] == uninterrupted
    saved = load_file(run / "checkpoint-4" / "adapter_model.safetensors")
    assert all(tensor.is_floating_point() for tensor in saved.values())


@needs_bitsandbytes
def test_weights_below_the_adapters_are_four_bit_numbers(recipe: Path) -> None:
    read = load_recipe(recipe, ["model.quantization=nf4"])
    model = choose_parameters(load_model(read), read.parts)
    inside = {name: p.dtype for name, p in model.named_parameters() if "layers.0.mlp" in name and "language" in name}
    assert {dtype for name, dtype in inside.items() if "base_layer" in name} == {torch.uint8}
    assert {dtype for name, dtype in inside.items() if "lora_" in name} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if "vision" in name} == {torch.float32}


@needs_bitsandbytes
@pytest.mark.skipif(torch.cuda.is_available(), reason="weights on a GPU are not parts of files")
def test_quantized_model_keeps_no_file_in_memory(recipe: Path) -> None:
    """Its other weights would keep whole files there, with the weights that were quantized."""

    def parts_of_files(model: nn.Module) -> list[str]:
        mapped = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()
                  if line.endswith(".safetensors")]  # fmt: skip
        ends = [(int(begin, 16), int(end, 16)) for begin, end in mapped]
        return [n for n, p in model.named_parameters() if any(begin <= p.data_ptr() < end for begin, end in ends)]

    as_saved = ["model.dtype=float32"]
    assert parts_of_files(load_model(load_recipe(recipe, as_saved)))
    assert not parts_of_files(load_model(load_recipe(recipe, [*as_saved, "model.quantization=nf4"])))


@needs_bitsandbytes
def test_exported_adapter_is_merged_into_the_unquantized_weights(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
    dart_train.train(recipe, [*SHORT, "model.quantization=nf4", f"train.output_dir={tmp_path / 'run'}"])
    dart_train.export(tmp_path / "run", tmp_path / "exported")
    exported = dart_train.load(tmp_path / "exported", device="cpu").model
    assert {p.dtype for p in exported.parameters()} == {torch.float32}


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    more = [*SHORT, "model.quantization=nf4", "train.optimizer=adamw_8bit"]
    return stage_jobs(recipe, folder, "02", *more) if BITSANDBYTES else []


@needs_bitsandbytes
@pytest.mark.deepspeed
def test_quantized_weights_and_eight_bit_adam_on_two_ranks(rank_runs: RankRuns) -> None:
    """DeepSpeed partitions the optimizer's state of the adapters; quantized weights stay complete on each rank."""
    first, second = map(rank_runs.losses, "02")
    assert min(first) < first[0] and second == pytest.approx(first, rel=1e-2)


def test_head_is_trained_next_to_the_adapters_and_exported(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
    run = tmp_path / "run"
    more = [*SHORT, "parts.lora.modules_to_save=[lm_head]", "model.quantization=none", f"train.output_dir={run}"]
    dart_train.train(recipe, more)
    uninterrupted = [line["loss"] for line in losses(run)]
    shutil.rmtree(run / "checkpoint-4")
    dart_train.train(recipe, more)
    assert [line["loss"] for line in losses(run)] == uninterrupted
    saved = load_file(run / "checkpoint-4" / "adapter_model.safetensors")
    head = next(tensor for name, tensor in saved.items() if name.endswith("lm_head.weight"))
    base = load_model(load_recipe(recipe)).lm_head.weight
    assert not torch.equal(head, base)
    dart_train.export(run, tmp_path / "exported")
    trained, exported = (dart_train.load(path, device="cpu").model for path in (run, tmp_path / "exported"))
    assert torch.equal(exported.lm_head.weight, head)
    torch.testing.assert_close(logits(exported), logits(trained), rtol=1e-4, atol=1e-4)


def test_modules_to_save_are_wrapped_by_name_and_misspelt_ones_refused(recipe: Path) -> None:
    read = load_recipe(recipe, ["parts.lora.modules_to_save=[lm_head, layers.0.mlp]"])
    model = choose_parameters(load_model(read), read.parts)
    wrapped = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    assert len([name for name in wrapped if name.endswith("lm_head")]) == 1
    read = load_recipe(recipe, ["parts.lora.modules_to_save=[lm_haed]"])
    with pytest.raises(ValueError, match="did you mean lm_head"):
        choose_parameters(load_model(read), read.parts)
