"""Everything that can be wrong with what is to be loaded is told in one message, before a weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import dart_train
from dart_train.models import loading as weights
from tests.fixtures.runs import Runs
from tests.zoo import save_folder


@pytest.fixture(autouse=True)
def no_weight_is_read(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs("lora") and runs("full")  # made before
    monkeypatch.setattr(weights.AutoModelForImageTextToText, "from_pretrained", None)


@pytest.fixture
def checkpoint(runs: Runs, tmp_path: Path) -> Path:
    """An adapter's, free to be spoilt; not marked, as if copied by hand."""
    shutil.copytree(runs("lora") / "checkpoint-4", tmp_path / "copy")
    (tmp_path / "copy" / "complete.json").unlink()
    (tmp_path / "copy" / "trainer_state.json").unlink()
    return tmp_path / "copy"


def change(file: Path, **new: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **new}))


def test_everything_wrong_is_told_at_once(checkpoint: Path) -> None:
    change(checkpoint / "reducer.json", format=99)
    change(checkpoint / "adapter_config.json", base_model_name_or_path="gone/away/far")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()
    with pytest.raises(ValueError) as told:
        dart_train.load(checkpoint, attn_implementation="flash_attention_3")
    message = str(told.value)
    assert "4 problems" in message and "needs the package flash_attn_interface" in message
    assert "format 99, expected 1; update dart_train" in message and "gone/away/far" in message
    assert "give where it is now as base" in message


def test_a_newer_reducer_can_be_passed_over(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(checkpoint / "reducer.json", format=99)
    with pytest.raises(ValueError, match="or load it with another reducer, or reducer=None"):
        dart_train.load(checkpoint)
    monkeypatch.undo()
    assert dart_train.load(checkpoint, reducer=None).attached is None


def test_a_base_model_that_moved_is_found_where_it_is_said_to_be(
    checkpoint: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(checkpoint / "adapter_config.json", base_model_name_or_path="gone/away/far")
    monkeypatch.undo()
    assert dart_train.load(checkpoint, base=runs("lora").parent / "llava").model is not None


@pytest.mark.parametrize("spoil,told", [
    (lambda folder: [file.unlink() for file in folder.glob("*oken*")], "no processor"),
    (lambda folder: (folder / "model.safetensors").unlink(), "weights are missing"),
    (lambda folder: (folder / "config.json").write_text("{}"), "holds no model that can be read"),
    (lambda folder: (folder / "config.json").unlink(), "holds no model: neither config.json nor adapter_config.json"),
    (lambda folder: (folder / "reducer.json").write_text("{"), "reducer.json"),
    (lambda folder: (folder / "provenance.json").write_text('{"format": 7}'), "not of format 1"),
])  # fmt: skip
def test_a_spoilt_folder_is_refused(tmp_path: Path, spoil: object, told: str) -> None:
    save_folder("llava", tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=told):
        dart_train.load(tmp_path)


@pytest.mark.parametrize("options,told", [
    ({"reducer": {"method": "dart", "keep": 4, "layer": 77}}, "layer=77: expected 0 to 4"),
    ({"reducer": "fastv"}, "how many tokens it keeps is not known; give keep="),
    ({"reducer": None, "keep": 4}, "no reduction is attached"),
    ({"reducer": "dart", "keep": (4, 2)}, "2 budgets for 1 stages"),
    ({"reducer": "drat", "keep": 4}, "did you mean dart?"),
    ({"reducer": {"method": "fewer_pixels", "keep": 4}}, "works at the processor"),
    ({"checkpoint": 3}, "not the folder of a run"),
    ({"base": "there"}, "the weights here are whole"),
])  # fmt: skip
def test_a_wish_that_cannot_be_met_is_refused(tmp_path: Path, options: dict[str, object], told: str) -> None:
    save_folder("llava", tmp_path)
    with pytest.raises(ValueError) as error:
        dart_train.load(tmp_path, **options)  # type: ignore[arg-type]
    assert told in str(error.value)


def test_a_checkpoint_that_is_not_whole_is_refused(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("full"), run)
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not of the size that was written"):
        dart_train.load(run / "checkpoint-4")
    (run / "checkpoint-2" / "complete.json").unlink()
    for path in (run, run / "checkpoint-2"):
        with pytest.raises(ValueError, match=r"complete\.json is missing, so it was never finished"):
            dart_train.load(path)
    with pytest.raises(ValueError, match="no checkpoint of step 3; it has those of: 2, 4"):
        dart_train.load(run, checkpoint=3)
    with pytest.raises(ValueError, match="expected a step, 'newest' or 'best'"):
        dart_train.load(run, checkpoint="latest")


@pytest.mark.parametrize(
    "path,told", [("./nowhere/at/all", "there is no such folder"), ("nobody/nothing", "no such folder")]
)
def test_a_path_to_nothing_is_said_to_be_one(path: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dart_train.load(path)


def test_a_model_that_is_no_vision_language_model_is_refused(tmp_path: Path) -> None:
    save_folder("llava", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="no vision-language model that transformers knows"):
        dart_train.load(tmp_path)
