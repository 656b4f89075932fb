"""Nothing is unpickled from a checkpoint of unknown origin."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from dart_train.cli.training import train as main
from dart_train.training.resume import scan_pickles
from tests.fixtures.run_scene import make_recipe


class Bomb:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.touch, (self.place,)


def checkpoint(run: Path, content: Any) -> Path:
    folder = run / "checkpoint-2"
    folder.mkdir(parents=True)
    torch.save(content, folder / "optimizer.pt")
    sizes = {"optimizer.pt": (folder / "optimizer.pt").stat().st_size}
    (folder / "complete.json").write_text(json.dumps({"step": 2, "ranks": 1, "stage": None, "files": sizes}))
    return folder


def test_pickle_that_runs_code_is_refused_before_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, fuse = make_recipe(tmp_path), tmp_path / "went off"
    checkpoint(tmp_path / "run", {"state": Bomb(fuse)})
    assert main([str(recipe)]) == 2
    output = capsys.readouterr().err
    assert "would run code when it is loaded" in output and "Traceback" not in output
    assert not fuse.exists()


class OldMember:
    """A member of an Enum as Python 3.11.0 to 3.11.3 pickles it."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


def test_enum_pickled_by_an_older_python_is_safe_and_other_attributes_are_not(tmp_path: Path) -> None:
    known = OldMember(ZeroStageEnum, "gradients")
    safe, private, other = (tmp_path / name for name in ("safe", "private", "other"))
    for folder, content in (
        (safe, [known, known, OldMember(ZeroStageEnum, "weights")]),
        (private, [known, OldMember(ZeroStageEnum, "__subclasses__")]),
        (other, [known, OldMember(Path, "home")]),
    ):
        checkpoint(folder, content)
    scan_pickles(safe / "checkpoint-2")
    for folder in (private, other):
        with pytest.raises(ValueError, match=r"builtins\.getattr"):
            scan_pickles(folder / "checkpoint-2")


def test_plain_pickle_is_not_opened(tmp_path: Path) -> None:
    fuse = tmp_path / "went off"
    (tmp_path / "state.pt").write_bytes(pickle.dumps(Bomb(fuse)))
    with pytest.raises(ValueError, match="is not opened"):
        scan_pickles(tmp_path)
    assert not fuse.exists()


def test_remote_code_of_a_model_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, fuse = make_recipe(tmp_path), tmp_path / "went off"
    file = tmp_path / "llava" / "config.json"
    strange = {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Strange"}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **strange}))
    (file.parent / "strange.py").write_text(f"open({str(fuse)!r}, 'w')\nclass Strange: pass\n")
    assert main([str(recipe)]) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    assert not fuse.exists()


def test_trust_remote_code_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = make_recipe(tmp_path)
    for trusted in ("false", "true"):
        assert not caplog.records
        assert main([str(recipe), "--dry-run", f"model.trust_remote_code={trusted}"]) == 0
    assert f"Python code from {tmp_path / 'llava'} runs on this machine" in caplog.text


def test_pickle_of_tensors_and_plain_python_is_accepted(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    scan_pickles(checkpoint(tmp_path, {"step": torch.ones(2), "groups": [{"lr": 0.1}], "scale": LossScaler(1.0)}))
