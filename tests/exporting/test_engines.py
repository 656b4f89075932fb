"""`export --for vllm`: what an engine cannot apply is refused or converted, and weights have the names it expects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

import dart_train
from dart_train import DART, Reducer
from dart_train.exporting import verify, verify_process
from dart_train.exporting.engine_names import engine_name, rename_for_engines
from dart_train.reduction.reducer_file import read_reducer_file, write_reducers
from tests.fixtures.run_scene import ROOT
from tests.zoo.folders import save_folder

SERVABLE = DART(keep=8, layer=0, text_pivots=0, per="image")
TINY_BASE = ROOT / "data/tiny_base"


@pytest.fixture(autouse=True)
def _verified_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))


def trained(family: str, folder: Path, *reducers: Reducer) -> Path:
    save_folder(family, folder)
    write_reducers(folder, reducers)
    return folder


def weight_names(folder: Path) -> Sequence[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_names_of_the_vision_tower(tmp_path: Path) -> None:
    """Saved by transformers under the flat names, exported under those that engines and transformers know."""
    model = trained("llava", tmp_path / "model", SERVABLE)
    out = dart_train.export(model, tmp_path / "out", for_engine="vllm")
    flat = [name for name in weight_names(model) if "vision_tower" in name]
    assert flat and not any("vision_model" in name for name in flat)
    assert sorted(map(engine_name, flat)) == sorted(name for name in weight_names(out) if "vision_tower" in name)
    assert rename_for_engines(out) == 0
    _, about = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]


def test_names_in_shards(tmp_path: Path) -> None:
    folder = save_folder("llava_next", tmp_path / "model")
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert rename_for_engines(folder) > 0
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {engine_name(name) for name in index} == set(index)
    for name, file in index.items():
        with safe_open(folder / file, "pt") as content:
            assert name in content.keys()  # noqa: SIM118
    _, about = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"]


def test_tiny_base_has_the_names_that_engines_expect() -> None:
    assert all(engine_name(name) == name for name in weight_names(TINY_BASE))


def test_reduction_that_an_engine_cannot_apply(tmp_path: Path) -> None:
    model = trained("llava", tmp_path / "model", DART(keep=8))
    with pytest.raises(ValueError, match="vLLM cannot apply the reduction") as caught:
        dart_train.export(model, tmp_path / "out", for_engine="vllm")
    for part in ("layer=2", "text_pivots=4", "per='sample'", "dart(keep=8, layer=0", "--convert"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()

    out = dart_train.export(model, tmp_path / "out", for_engine="vllm", convert=True)
    file = read_reducer_file(out)
    assert file is not None and file.trained_stages == (DART(keep=8),)
    assert file.stages == (DART(keep=8, layer=0, text_pivots=0, per="image", pivot="key_min", merge="nearest"),)
    assert "--hf-overrides '{\"dart_untrained\": true}'" in (out / "README.md").read_text()


def test_servable_reduction_is_written_as_it_was_trained(tmp_path: Path) -> None:
    model = trained("llava", tmp_path / "model", SERVABLE)
    out = dart_train.export(model, tmp_path / "out", for_engine="vllm", convert=True)
    file = read_reducer_file(out)
    assert file is not None and file.stages == file.trained_stages == (SERVABLE,)
    card = (out / "README.md").read_text()
    assert "vllm serve out\n" in card and "dart_untrained" not in card


def test_families_and_options(tmp_path: Path) -> None:
    other = trained("smolvlm", tmp_path / "other", SERVABLE)
    with pytest.raises(ValueError, match="SmolVLMForConditionalGeneration is not served by vLLM"):
        dart_train.export(other, tmp_path / "out", for_engine="vllm")
    with pytest.raises(ValueError, match="expected one of vllm"):
        dart_train.export(other, tmp_path / "out", for_engine="tgi")
    with pytest.raises(ValueError, match="name the engine"):
        dart_train.export(other, tmp_path / "out", convert=True)
