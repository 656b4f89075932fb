"""`load` reports everything that is wrong in one message, before a weight is read."""

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
    """A copy of an adapter's checkpoint without its marker, as if copied by hand."""
    shutil.copytree(runs("lora") / "checkpoint-4", tmp_path / "copy")
    (tmp_path / "copy" / "complete.json").unlink()
    (tmp_path / "copy" / "trainer_state.json").unlink()
    return tmp_path / "copy"


def change(file: Path, **new: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **new}))


def test_all_problems_are_reported_together(checkpoint: Path) -> None:
    change(checkpoint / "reducer.json", format=99)
    change(checkpoint / "adapter_config.json", base_model_name_or_path="gone/away/far")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()
    with pytest.raises(ValueError) as error:
        dart_train.load(checkpoint, attn_implementation="flash_attention_3")
    message = str(error.value)
    assert "4 problems" in message and "needs the package flash_attn_interface" in message
    assert "format 99, expected 1; update dart_train" in message and "gone/away/far" in message
    assert "give where it is now as base" in message


def test_reducer_json_of_a_newer_format_can_be_skipped(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(checkpoint / "reducer.json", format=99)
    with pytest.raises(ValueError, match="or load it with another reducer, or reducer=None"):
        dart_train.load(checkpoint)
    monkeypatch.undo()
    assert dart_train.load(checkpoint, reducer=None).attached is None


def test_base_overrides_the_path_of_a_moved_base_model(
    checkpoint: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(checkpoint / "adapter_config.json", base_model_name_or_path="gone/away/far")
    monkeypatch.undo()
    assert dart_train.load(checkpoint, base=runs("lora").parent / "llava").model is not None


@pytest.mark.parametrize("spoil,message", [
    (lambda folder: [file.unlink() for file in folder.glob("*oken*")], "no processor"),
    (lambda folder: (folder / "model.safetensors").unlink(), "weights are missing"),
    (lambda folder: (folder / "config.json").write_text("{}"), "cannot read a model from"),
    (lambda folder: (folder / "config.json").unlink(), "holds no model: neither config.json nor adapter_config.json"),
    (lambda folder: (folder / "reducer.json").write_text("{"), "reducer.json"),
    (lambda folder: (folder / "provenance.json").write_text('{"format": 7}'), "format 7, expected 1; update"),
])  # fmt: skip
def test_damaged_folder_is_refused(tmp_path: Path, spoil: object, message: str) -> None:
    save_folder("llava", tmp_path)
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        dart_train.load(tmp_path)


@pytest.mark.parametrize("options,message", [
    ({"reducer": {"method": "dart", "keep": 4, "layer": 77}}, "layer=77: expected 0 to 4"),
    ({"reducer": "fastv"}, "how many tokens to keep is not known; give keep="),
    ({"reducer": None, "keep": 4}, "no reduction is attached"),
    ({"reducer": "dart", "keep": (4, 2)}, "2 budgets for 1 stages"),
    ({"reducer": "drat", "keep": 4}, "did you mean dart?"),
    ({"reducer": {"method": "fewer_pixels", "keep": 4}}, "works at the processor"),
    ({"checkpoint": 3}, "not the folder of a run"),
    ({"base": "there"}, "holds full weights"),
])  # fmt: skip
def test_options_that_cannot_work_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    save_folder("llava", tmp_path)
    with pytest.raises(ValueError) as error:
        dart_train.load(tmp_path, **options)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_incomplete_checkpoint_is_refused(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("full"), run)
    (run / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not of the size that was written"):
        dart_train.load(run / "checkpoint-4")
    (run / "checkpoint-2" / "complete.json").unlink()
    for path in (run, run / "checkpoint-2"):
        with pytest.raises(ValueError, match=r"missing complete\.json, which is written last"):
            dart_train.load(path)
    with pytest.raises(ValueError, match="no checkpoint of step 3; it has those of: 2, 4"):
        dart_train.load(run, checkpoint=3)
    with pytest.raises(ValueError, match="expected a step, 'newest' or 'best'"):
        dart_train.load(run, checkpoint="latest")


@pytest.mark.parametrize(
    "path,message", [("./nowhere/at/all", "there is no such folder"), ("owner/missing", "no such folder")]
)
def test_missing_path_is_refused(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dart_train.load(path)


def test_language_model_without_vision_is_refused(tmp_path: Path) -> None:
    save_folder("llava", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="not a vision-language model that transformers knows"):
        dart_train.load(tmp_path)
