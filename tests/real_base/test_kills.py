"""Training of the base of pretrained parts that is killed by SIGKILL, in every phase, ends with the same weights."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data.real_base.assemble import assemble

from .stand_ins import SIZE, make_parts, make_recipe

ROOT = Path(__file__).parents[2]
WEIGHTS = ("projector.safetensors", "adapter_model.safetensors")

# The process kills itself where the nth call of a function begins. Before that it draws random numbers, as the first
# start does, which converts the parts.
KILLED = """
import os, pkgutil, signal, sys

import torch

from data.real_base.__main__ import main
from data.real_base.train import command

assembled = command.assembled
command.assembled = lambda *args: (torch.rand(3), assembled(*args))[1]
place, left, recipe = sys.argv[1], int(sys.argv[2]), sys.argv[3]
owner, name = place.split("/")
owner = pkgutil.resolve_name(owner)
called = getattr(owner, name)


def kill_at_last(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return called(*args, **kwargs)


setattr(owner, name, kill_at_last)
raise SystemExit(main(["train", "--recipe", recipe]))
"""
KILLS = (
    ("data.real_base.train.features/tower_features", 2),  # between two blocks of features
    ("data.real_base.train.words:WordTargets/loss", 1),  # stage `projector`, before anything was saved
    ("os/replace", 2),  # a state was written and not yet moved to its name
    ("data.real_base.train.model:TrainedParts/answer_loss", 3),  # stage `few`, between two saves
    ("data.real_base.train.model:TrainedParts/answer_loss", 6),  # in a later step, of stage `all`
)


def train(recipe: Path, *kill: object) -> int:
    """Exit code of a training of its own process; kill: where it kills itself."""
    script = ["-c", KILLED, *map(str, kill)] if kill else ["-m", "data.real_base", "train", "--recipe"]
    done = subprocess.run([sys.executable, *script, str(recipe)], cwd=ROOT, capture_output=True, timeout=1200)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


def write_recipe(folder: Path) -> Path:
    """A recipe for stand-ins that are where downloaded and converted parts would be."""
    stages = {"projector": {"steps": 2, "batch_size": 2}}
    stages |= {name: {"steps": 3, "batch_size": 2, "naming": 2, "others": 1, "patches": 32} for name in ("few", "all")}
    settings = make_recipe(
        folder,
        stages=stages,
        pictures={"train": 10, "feature_layers": [-3, -2]},
        parts_dir=str(folder / "parts"),
        save_steps=2,
    )
    language, tokenizer, vision = make_parts()
    model, processor = assemble(language, tokenizer, vision, -2, SIZE)
    made = folder / "parts" / f"pretrained_{SIZE}_2"
    model.save_pretrained(made)
    processor.save_pretrained(made)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings.to_dict()))
    return folder / "recipe.yaml"


@pytest.mark.drill
def test_training_killed_in_every_phase_ends_with_the_same_weights(tmp_path: Path) -> None:
    undisturbed = write_recipe(tmp_path / "undisturbed")
    assert train(undisturbed) == 0
    shutil.copytree(undisturbed.parent / "parts", tmp_path / "killed" / "parts")
    killed = tmp_path / "killed" / "recipe.yaml"
    killed.write_text(undisturbed.read_text().replace(str(undisturbed.parent), str(killed.parent)))
    for place, call in KILLS:
        assert train(killed, place, call) == -signal.SIGKILL, place
    assert train(killed) == 0
    for name in WEIGHTS:
        assert (killed.parent / "out" / name).read_bytes() == (undisturbed.parent / "out" / name).read_bytes()
