"""`load`: the trained weights, the reduction they were trained with, and the provenance of both."""

from __future__ import annotations

import json
import shutil
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, LlavaProcessor

import dart_train
from dart_train import DART, FastV, Random, attach
from dart_train.checkpoints import ModelLocation, Provenance, TrainedBudgets, UntrainedBudget, loading
from dart_train.checkpoints.loading import select_reducer
from tests.fixtures.runs import Runs, logits
from tests.zoo import save_folder

ELASTIC = TrainedBudgets(((1.0,), (0.5,), (0.25,)))


@pytest.mark.parametrize("spec", [(), ("trained",), (...,)], ids=["default", "trained", "ellipsis"])
def test_run_loads_its_newest_checkpoint_with_the_trained_reduction(runs: Runs, spec: tuple[Any, ...]) -> None:
    loaded = dart_train.load(runs("lora"), *spec)
    assert loaded.attached is not None and loaded.attached.reducers == (DART(keep=0.25, layer=2),)
    assert isinstance(loaded.processor, LlavaProcessor) and not loaded.model.training
    assert loaded.provenance.step == 4 and loaded.provenance.budgets == ELASTIC
    assert loaded.provenance.base_model == str(runs("lora").parent / "llava")
    assert loaded.provenance.recipe and loaded.provenance.recipe["parts"]["vision"]["mode"] == "lora"
    assert loaded.provenance.versions["torch"] == metadata.version("torch")  # without the build, such as +cu130


@pytest.mark.parametrize("merge", [True, False])
def test_lora_loads_as_plain_peft_reads_it(runs: Runs, merge: bool) -> None:
    checkpoint = runs("lora") / "checkpoint-2"
    base = AutoModelForImageTextToText.from_pretrained(runs("lora").parent / "llava")
    plain = PeftModel.from_pretrained(base, checkpoint).eval()
    loaded = dart_train.load(checkpoint, merge=merge)
    assert isinstance(loaded.model, PeftModel) is not merge
    with attach(plain, DART(keep=0.25, layer=2)):
        torch.testing.assert_close(logits(loaded.model), logits(plain), rtol=1e-4, atol=1e-4)
    untrained = dart_train.load(runs("lora").parent / "llava", DART(keep=0.25, layer=2))
    assert (logits(loaded.model) - logits(untrained.model)).abs().max() > 0.1


def test_full_weights_load_as_plain_transformers_reads_them(runs: Runs) -> None:
    plain = AutoModelForImageTextToText.from_pretrained(runs("full") / "checkpoint-4").eval()
    loaded = dart_train.load(runs("full"), reducer=None)
    assert loaded.attached is None and torch.equal(logits(loaded.model), logits(plain))


def test_dtype_is_that_of_training(runs: Runs) -> None:
    assert dart_train.load(runs("half")).model.dtype == torch.bfloat16
    assert dart_train.load(runs("half"), dtype=torch.float32).model.dtype == torch.float32


def test_stages_are_attached_in_their_order(runs: Runs) -> None:
    loaded = dart_train.load(runs("staged"))
    assert loaded.attached is not None
    assert loaded.attached.reducers == (DART(keep=0.5, layer=1), Random(keep=0.25, layer=3))


def test_run_without_reduction_loads_without(runs: Runs) -> None:
    assert dart_train.load(runs("plain")).attached is None


def test_any_model_folder_loads_and_a_budget_alone_means_dart(tmp_path: Path) -> None:
    save_folder("qwen2_vl", tmp_path)
    assert dart_train.load(tmp_path).attached is None
    attached = dart_train.load(tmp_path, keep=4).attached
    assert attached is not None and attached.reducers == (DART(keep=4),)


@pytest.mark.parametrize(
    "spec",
    [
        "fastv",
        FastV(keep=0.25),
        [FastV(keep=0.25)],
        {"method": "fastv", "keep": 0.25},
        [{"method": "fastv", "keep": 0.25}],
    ],
    ids=["name", "reducer", "stages", "configuration", "configurations"],
)
def test_reducer_spec_in_every_form(runs: Runs, spec: object) -> None:
    attached = dart_train.load(runs("lora"), spec).attached
    assert attached is not None and attached.reducers == (FastV(keep=0.25),)


def test_method_by_name_keeps_the_options_it_was_trained_with(runs: Runs) -> None:
    attached = dart_train.load(runs("fixed"), "dart", keep=8).attached
    assert attached is not None and attached.reducers == (DART(keep=8, layer=2),)


@pytest.mark.parametrize("kind,keep,names", [
    ("lora", 0.3, "served at 0.3 of the tokens, but trained at full tokens, 0.5 of the tokens, 0.25 of the tokens"),
    ("fixed", 4, "served at 4 tokens, but trained at 8 tokens"),
    ("fixed", 1.0, "served at full tokens, but trained at 8 tokens"),
    ("staged", (0.5, 0.5), "served at 0.5 of the tokens then 0.5 of the tokens, but trained at 0.5 of the tokens then"),
])  # fmt: skip
def test_untrained_budget_warns_and_names_the_trained_ones(runs: Runs, kind: str, keep: float, names: str) -> None:
    with pytest.warns(UntrainedBudget, match=names) as caught:
        dart_train.load(runs(kind), keep=keep)
    assert [each.filename for each in caught if each.category is UntrainedBudget] == [__file__]


@pytest.mark.parametrize("kind,keep", [("lora", 0.5), ("lora", 1.0), ("lora", None), ("fixed", 8), ("staged", None)])
def test_trained_budget_does_not_warn(runs: Runs, kind: str, keep: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntrainedBudget)
        dart_train.load(runs(kind), keep=keep)


def test_reduction_on_a_model_trained_with_full_tokens_warns(runs: Runs) -> None:
    with pytest.warns(UntrainedBudget, match="but trained at full tokens"):
        dart_train.load(runs("plain"), DART(keep=4))


PROGRESSIVE = {"kind": "progressive", "start_low": 0.1, "start_high": 0.1, "end_low": 0.26, "end_high": 0.74}


@pytest.mark.parametrize("keep,known", [(0.9, True), (0.26, True), (0.5, True), (0.2, False), (1.0, False), (7, False)])
def test_progressive_training_covers_its_entire_range(keep: float, known: bool) -> None:
    budgets = TrainedBudgets.of({"method": "dart", "keep": 0.5, "schedule": PROGRESSIVE})
    assert budgets.include([keep]) is known
    assert str(budgets) == "0.26 to 0.9 of the visual tokens"
    assert TrainedBudgets.read(json.loads(json.dumps(budgets.to_dict()))) == budgets


def test_one_token_is_not_all_tokens() -> None:
    assert not ELASTIC.include([1]) and ELASTIC.include([1.0]) and ELASTIC.include([1.0, 1.0])
    assert TrainedBudgets.of("none").include([1.0]) and not TrainedBudgets.of("none").include([0.5])


def test_best_checkpoint_is_the_default_if_the_run_was_validated(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("lora"), run)
    state = run / "checkpoint-4" / "trainer_state.json"
    content = json.loads(state.read_text()) | {"best_model_checkpoint": "elsewhere/before/it/was/moved/checkpoint-2"}
    state.write_text(json.dumps(content).ljust(state.stat().st_size))
    mark = json.loads((run / "checkpoint-4" / "complete.json").read_text())
    mark["files"]["trainer_state.json"] = state.stat().st_size
    (run / "checkpoint-4" / "complete.json").write_text(json.dumps(mark))
    assert dart_train.load(run).provenance.step == 2
    assert dart_train.load(run, checkpoint="newest").provenance.step == 4
    assert dart_train.load(run, checkpoint=2).provenance.step == 2


def test_damaged_newest_checkpoint_is_skipped(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs("lora"), tmp_path / "run")
    (tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"cut")
    assert dart_train.load(tmp_path / "run").provenance.step == 2


def test_another_method_by_name_takes_the_trained_layer_and_budget() -> None:
    trained = [DART(keep=8, layer=3, per="image")]
    assert select_reducer(trained, "fastv", None) == [FastV(keep=8, layer=3, per="image")]
    assert select_reducer(trained, "fastv", 4) == [FastV(keep=4, layer=3, per="image")]


def test_base_model_of_a_hub_is_loaded_at_its_trained_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At another base, the revision of the trained one means nothing."""
    (tmp_path / "adapter_config.json").touch()
    adapter, hub = ModelLocation(tmp_path, str(tmp_path)), ModelLocation(tmp_path / "cache", "org/model", "trained")
    located = []
    monkeypatch.setattr(loading, "locate", lambda *given: located.append(given) or hub)
    provenance = Provenance(str(tmp_path), base_model="org/model", base_revision="trained")
    source = loading._weights_source(adapter, provenance, None, False)
    assert (source.path, source.revision, source.adapter) == ("org/model", "trained", str(tmp_path))
    loading._weights_source(adapter, provenance, "org/other", False)
    assert located == [("org/model", None, "trained"), ("org/other", None, None)]
