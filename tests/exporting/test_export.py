"""An export is the run's model, in a folder that needs neither the run nor this package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

import dart_train
from dart_train import DART, attach
from dart_train.checkpoints import TrainedBudgets, resolve
from dart_train.config import load_recipe
from dart_train.exporting import verify, verify_process
from tests.fixtures.run_scene import ROOT
from tests.fixtures.runs import Runs, logits

Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export of one of the runs, made and verified once."""
    folder = tmp_path_factory.mktemp("exports")

    def made(kind: str, adapter_only: bool = False) -> Path:
        out = folder / f"{kind}{'-adapter' * adapter_only}"
        with pytest.MonkeyPatch.context() as patch:
            if kind != "lora" or adapter_only:  # one fresh process is enough, it takes seconds
                patch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
            return out if out.exists() else dart_train.export(runs(kind), out, adapter_only=adapter_only)

    return made


def as_trained(run: Path, checkpoint: int = 4) -> torch.nn.Module:
    """The run's model by plain transformers and plain PEFT."""
    dtype = torch.bfloat16 if run.name == "half" else torch.float32
    base = AutoModelForImageTextToText.from_pretrained(run.parent / "llava", dtype=dtype)
    return PeftModel.from_pretrained(base, run / f"checkpoint-{checkpoint}").eval()


@pytest.mark.parametrize("kind,tolerance", [("lora", 1e-3), ("half", 0.1)])
def test_lora_is_merged_and_gives_the_logits_of_the_run(
    runs: Runs, exported: Exported, kind: str, tolerance: float
) -> None:
    """Vision tower (lora), projector (full) and language model (lora) trained, so all of them must be there."""
    plain = AutoModelForImageTextToText.from_pretrained(exported(kind)).eval()
    run = as_trained(runs(kind))
    assert plain.dtype == (torch.bfloat16 if kind == "half" else torch.float32)
    expected = logits(run)
    assert (logits(plain) - expected).pow(2).mean().sqrt() < tolerance * expected.std()
    with run.disable_adapter():
        assert (logits(run) - expected).pow(2).mean().sqrt() > 2 * tolerance * expected.std()


def test_full_weights_are_exported_unchanged(runs: Runs, exported: Exported) -> None:
    trained = AutoModelForImageTextToText.from_pretrained(runs("full") / "checkpoint-4").state_dict()
    plain = AutoModelForImageTextToText.from_pretrained(exported("full")).state_dict()
    assert trained.keys() == plain.keys() and all(torch.equal(plain[name], trained[name]) for name in trained)


def test_earlier_checkpoint_gives_its_own_logits(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
    folder = dart_train.export(runs("lora"), tmp_path / "earlier", checkpoint=2)
    run = runs("lora")
    earlier, later = (logits(as_trained(run, checkpoint)) for checkpoint in (2, 4))
    exported_logits = logits(AutoModelForImageTextToText.from_pretrained(folder).eval())
    assert (exported_logits - earlier).pow(2).mean().sqrt() < 0.01 * (later - earlier).pow(2).mean().sqrt()


def test_exported_adapter_is_read_by_plain_peft(runs: Runs, exported: Exported) -> None:
    folder = exported("lora", adapter_only=True)
    assert not (folder / "model.safetensors").exists()
    base = AutoModelForImageTextToText.from_pretrained(runs("lora").parent / "llava")
    assert torch.equal(logits(PeftModel.from_pretrained(base, folder).eval()), logits(as_trained(runs("lora"))))
    assert dart_train.load(folder).provenance.step == 4


def test_exported_folder_generates_without_this_package(exported: Exported) -> None:
    folder = str(exported("lora"))
    code = (
        "import sys; sys.modules['dart_train'] = None\n"
        "from transformers import AutoModelForImageTextToText as M, AutoProcessor as P\n"
        "from PIL import Image\n"
        f"model, processor = M.from_pretrained({folder!r}), P.from_pretrained({folder!r})\n"
        "ask = [{'role': 'user', 'content': [{'type': 'image', 'image': Image.new('RGB', (32, 32))},"
        " {'type': 'text', 'text': 'which shape'}]}]\n"
        "batch = processor.apply_chat_template(ask, tokenize=True, return_dict=True, return_tensors='pt',"
        " add_generation_prompt=True)\n"
        "print('answered', model.generate(**batch, max_new_tokens=3).shape[1] - batch['input_ids'].shape[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=False)
    assert "answered" in done.stdout, done.stderr[-2000:]


def test_exported_folder_has_every_file(exported: Exported) -> None:
    folder = exported("lora")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "processor_config.json", "provenance.json", "recipe.yaml", "reducer.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "LlavaProcessor"
    assert GenerationConfig.from_pretrained(folder).eos_token_id is not None
    assert "dart" not in (folder / "config.json").read_text()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_provenance_of_an_export(runs: Runs, exported: Exported) -> None:
    provenance = json.loads((exported("lora") / "provenance.json").read_text())
    assert provenance["base_model"] == str(runs("lora").parent / "llava") and provenance["step"] == 4
    assert provenance["recipe"] == load_recipe(runs("lora") / "recipe.yaml").to_dict() | {
        "data": provenance["recipe"]["data"]
    }
    assert provenance["budgets"]["choices"] == [[1.0], [0.5], [0.25]]
    assert provenance["versions"]["torch"] == provenance["exported_with"]["torch"] == torch.__version__
    (data,) = provenance["data"]
    assert data["use"] == "train" and len(data["sha256"]) == 64 and data["changed_since_training"] is False


def test_model_card_of_an_export(exported: Exported) -> None:
    text = (exported("lora") / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "image-text-to-text"
    assert "budgets trained at: full tokens, 0.5 of the tokens, 0.25 of the tokens" in text
    assert 'AutoModelForImageTextToText.from_pretrained("lora")' in text and "no validation and no comparison" in text
    adapter = (exported("lora", adapter_only=True) / "README.md").read_text()
    assert "PeftModel.from_pretrained" in adapter and yaml.safe_load(adapter.split("---")[1])["library_name"] == "peft"


def test_exported_model_is_loaded_with_its_trained_reduction(runs: Runs, exported: Exported) -> None:
    loaded = dart_train.load(exported("lora"))
    assert loaded.attached is not None and loaded.attached.reducers == (DART(keep=0.25, layer=2),)
    assert loaded.provenance.budgets == TrainedBudgets(((1.0,), (0.5,), (0.25,)))
    run = as_trained(runs("lora"))
    with attach(run, DART(keep=0.25, layer=2)):
        torch.testing.assert_close(logits(loaded.model), logits(run), rtol=1e-4, atol=1e-3)
    with pytest.warns(UserWarning, match=r"served at 3 tokens, but trained at full tokens, 0\.5 of the tokens"):
        dart_train.load(exported("lora"), keep=3)


def test_export_of_an_export_keeps_its_provenance(exported: Exported) -> None:
    assert resolve(exported("full")).provenance.step == 4 and resolve(exported("full")).provenance.data
