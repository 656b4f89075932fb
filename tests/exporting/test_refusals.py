"""What cannot be exported is refused before a weight is read, and nothing of the user's is overwritten."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import dart_train
from dart_train.__main__ import main
from dart_train.exporting import verify, verify_process, writing
from dart_train.models import loading as weights
from tests.fixtures.runs import Runs


@pytest.fixture(autouse=True)
def no_weight_is_read(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs("lora") and runs("full")  # made before
    monkeypatch.setattr(weights.AutoModelForImageTextToText, "from_pretrained", None)


def test_export_is_replaced_only_with_force(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "provenance.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an export already; choose another folder, or --force"):
        dart_train.export(runs("full"), out)
    monkeypatch.undo()
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
    dart_train.export(runs("full"), out, force=True)
    assert (out / "model.safetensors").is_file() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_export_is_kept_if_its_replacement_fails(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "provenance.json").write_text("{}")
    monkeypatch.undo()
    monkeypatch.setattr(writing, "verify_export", lambda *given: (_ for _ in ()).throw(RuntimeError("not the same")))
    assert main(["export", str(runs("full")), "--out", str(tmp_path / "out"), "--force"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "provenance.json").read_text() == "{}"


def test_export_killed_between_its_renames_is_restored(tmp_path: Path) -> None:
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "kept").touch()
    with writing._draft_folder(tmp_path / "out"):
        assert (tmp_path / "out" / "kept").exists()


@pytest.mark.parametrize("force", [False, True])
def test_folder_that_is_not_an_export_is_never_replaced(runs: Runs, tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something that is not an export and is not replaced"):
        dart_train.export(runs("lora"), tmp_path, force=force)
    with pytest.raises(ValueError, match=r"thesis\.tex is a file"):
        dart_train.export(runs("lora"), tmp_path / "thesis.tex", force=force)
    copy = tmp_path / "run"
    shutil.copytree(runs("lora"), copy)
    for out in (copy, tmp_path, copy / "checkpoint-4"):
        with pytest.raises(ValueError, match=r"would replace the model that is exported|not an export"):
            dart_train.export(copy / "checkpoint-4", out, force=True)


def test_options_that_cannot_work_are_refused(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="there is no adapter"):
        dart_train.export(runs("full"), out, adapter_only=True)
    with pytest.raises(ValueError, match="expected one of float32, bfloat16, float16"):
        dart_train.export(runs("full"), out, dtype="int8")
    with pytest.raises(ValueError, match="an adapter is exported as it was saved"):
        dart_train.export(runs("lora"), out, dtype="float32", adapter_only=True)
    with pytest.raises(ValueError, match="has no checkpoint of step 3; it has those of: 2, 4"):
        dart_train.export(runs("lora"), out, checkpoint=3)
    with pytest.raises(ValueError, match="base model was not found"):
        dart_train.export(runs("lora"), out, base="./gone")
    assert not list(tmp_path.iterdir())


def test_all_problems_are_reported_together(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError) as caught:
        dart_train.export(runs("full"), tmp_path, adapter_only=True, dtype="int8", force=True)
    lines = str(caught.value).splitlines()
    for words, line in zip(("not an export", "dtype='int8'", "there is no adapter"), lines, strict=True):
        assert words in line
    shutil.copytree(runs("full").parent / "llava", tmp_path / "bare")
    (tmp_path / "bare" / "processor_config.json").unlink()
    (tmp_path / "bare" / "reducer.json").write_text('{"format": 9, "stages": []}')
    with pytest.raises(ValueError) as caught:
        dart_train.export(tmp_path / "bare", tmp_path / "thesis.tex")
    for words in ("thesis.tex is a file", "no processor", "reducer.json"):
        assert words in str(caught.value)


def test_disk_full_is_refused_before_writing(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"GiB, 0\.0 GiB are free there"):
        dart_train.export(runs("full"), tmp_path / "out")


def test_command_line_reports_the_error_and_exits_2(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "export: " in capsys.readouterr().err and not (tmp_path / "out").exists()
