"""DPO and GRPO with the reduction on, through TRL's own trainers: every forward of a row keeps the same tokens."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import dart_train
from dart_train.checkpoints import latest_complete
from dart_train.cli.options import STOPPED
from dart_train.cli.training import train as main
from dart_train.common.distributed import RankInfo
from dart_train.config import RecipeError, load_recipe
from dart_train.exporting import verify, verify_process
from dart_train.training.callbacks import read_metrics
from dart_train.training.preference import run as preference_run
from dart_train.training.preference.run import check, describe
from dart_train.training.preference.trainers import PreferenceTrainer
from tests.fixtures.runs import logits
from tests.training.preference_scene import make_preference_recipe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "error:.*answers may influence.*")
ALONE = RankInfo(0, 1, 1, False)
TWICE = "preference.trl={num_iterations: 2, steps_per_generation: 2}"


def lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if "loss" in line]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preference")


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_run_trains_resumes_and_exports(scene: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
    recipe, run = make_preference_recipe(scene, method), scene / method
    done = dart_train.train(recipe)
    assert (done.steps, done.stopped, done.checkpoint) == (4, None, run / "checkpoint-4")
    uninterrupted = lines(run)
    assert all(line["grad_norm"] > 0 for line in uninterrupted)
    assert uninterrupted[-1]["rows_sharing_choice"] == {"dpo": 32, "grpo": 16}[method]
    assert uninterrupted[-1]["rows_with_another_choice"] == 0
    shutil.rmtree(run / "checkpoint-4")
    dart_train.train(recipe)
    names = {"dpo": ["loss", "logps/chosen"], "grpo": ["reward", "entropy", "grad_norm"]}[method]
    for name in names:
        assert [line[name] for line in lines(run)] == pytest.approx([line[name] for line in uninterrupted], rel=1e-5)
    dart_train.export(run, scene / f"exported_{method}")
    trained, exported = (dart_train.load(path, device="cpu") for path in (run, scene / f"exported_{method}"))
    torch.testing.assert_close(logits(exported.model), logits(trained.model), rtol=1e-4, atol=1e-4)
    assert exported.attached is not None and exported.attached.reducers[0].keep == 0.25


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_forwards_would_choose_otherwise_if_they_did_not_share(
    scene: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law is not empty: a learning rate that moves the layers before the reduction changes what they choose."""
    recipe = make_preference_recipe(scene, method)
    more = ["train.learning_rate=0.1", "train.save_steps=4", f"train.output_dir={tmp_path}"]
    more += [TWICE] if method == "grpo" else []
    monkeypatch.setattr(PreferenceTrainer, "share_choices", False)
    dart_train.train(recipe, more)
    assert lines(tmp_path)[-1]["rows_with_another_choice"] > 0
    monkeypatch.undo()
    dart_train.train(recipe, [*more[:-1], *(more[-1:]), f"train.output_dir={tmp_path / 'shared'}"])
    last = lines(tmp_path / "shared")[-1]
    assert last["rows_with_another_choice"] == 0 and last["rows_sharing_choice"] > 0


def test_reference_with_weights_of_its_own_shares_the_choice(scene: Path, tmp_path: Path) -> None:
    recipe = make_preference_recipe(scene, "dpo")
    full = ["parts.language={mode: full}", "parts.projector={mode: full}", "train.learning_rate=1e-3"]
    dart_train.train(recipe, [*full, "train.max_steps=2", f"train.output_dir={tmp_path}"])
    assert lines(tmp_path)[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # policy and reference are equal at first
    assert lines(tmp_path)[-1]["rows_with_another_choice"] == 0
    assert (tmp_path / "checkpoint-2" / "model.safetensors").is_file()


def test_keep_all_is_trl_without_a_reduction(scene: Path, tmp_path: Path) -> None:
    recipe, found = make_preference_recipe(scene, "dpo"), {}
    for name, reduction in (("all", "{method: keep_all, schedule: {kind: fixed}}"), ("none", "none")):
        run = tmp_path / name
        dart_train.train(recipe, [f"reduction={reduction}", "train.learning_rate=1e-3", f"train.output_dir={run}"])
        found[name] = [line["loss"] for line in lines(run)]
    assert found["all"] == pytest.approx(found["none"], rel=1e-4)


def test_checkpointing_of_activations_and_elastic_budgets_change_no_law(scene: Path, tmp_path: Path) -> None:
    recipe, found = make_preference_recipe(scene, "dpo"), {}
    for on in ("true", "false"):
        more = [f"train.gradient_checkpointing={on}", f"train.output_dir={tmp_path / on}", "train.learning_rate=1e-3"]
        dart_train.train(recipe, [*more, "reduction.schedule={kind: elastic, choices: [0.5, 0.25]}"])
        found[on] = [line["loss"] for line in lines(tmp_path / on)]
        assert lines(tmp_path / on)[-1]["rows_with_another_choice"] == 0
    assert found["true"] == pytest.approx(found["false"], rel=1e-4)


def test_validation_of_pairs(scene: Path, tmp_path: Path) -> None:
    recipe = make_preference_recipe(scene, "dpo")
    rows = f"data.validation=[{{path: {scene / 'pairs.json'}, images: {scene / 'images'}, limit: 4}}]"
    dart_train.train(recipe, [rows, "train.max_steps=2", "train.eval_steps=1", f"train.output_dir={tmp_path}"])
    found = [line for line in read_metrics(tmp_path) if "eval_loss" in line]
    assert len(found) == 2 and "eval_rewards/margins" in found[0]


class SendsSigterm(TrainerCallback):
    """To its own process, in the middle of step 2."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_sigterm_saves_the_step_and_the_same_command_resumes(
    scene: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, reporters = make_preference_recipe(scene, method), preference_run._reporters
    given = [str(recipe), "train.max_steps=3", "train.save_steps=100"]
    stopped, whole = ([*given, f"train.output_dir={tmp_path / name}"] for name in ("stopped", "whole"))
    assert main(whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr(preference_run, "_reporters", lambda *of: [*reporters(*of), SendsSigterm()])
        assert main(stopped) == STOPPED
    assert latest_complete(tmp_path / "stopped")[0] == tmp_path / "stopped/checkpoint-2"
    assert main(stopped) == 0
    found, expected = ([line["loss"] for line in lines(tmp_path / name)] for name in ("stopped", "whole"))
    assert len(found) == 3 and found == pytest.approx(expected, rel=1e-5)


def test_dry_run_counts_rows_and_parameters(scene: Path) -> None:
    text = describe(load_recipe(make_preference_recipe(scene, "dpo")))
    assert "rows: 12 usable, 0 left out" in text and "method: dpo" in text


@pytest.mark.parametrize(
    ("path", "broken", "remedy"),
    [
        ("preference", ["train.method=sft", "preference.beta=0.2"], "train.method=dpo"),
        ("preference.rewards", ["train.method=grpo"], "preference.rewards=json:loads"),
        ("preference.rewards", ["preference.rewards=json:loads"], "train.method=grpo"),
        ("preference.rewards.0", ["train.method=grpo", "preference.rewards=loads"], "preference.rewards=json:loads"),
        ("distill.enabled", ["distill.enabled=true"], "distill.enabled=false"),
        ("data.train.0.weight", ["data.train.0.weight=2.0"], "data.train.0.weight=1.0"),
        ("model.quantization", ["model.quantization=nf4"], "model.quantization=none"),
    ],
)
def test_conflict_is_reported_and_its_remedy_helps(scene: Path, path: str, broken: list[str], remedy: str) -> None:
    recipe = make_preference_recipe(scene, "dpo")
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, broken)
    assert [issue.path for issue in caught.value.issues] == [path]
    load_recipe(recipe, [*broken, remedy])


def test_wrong_arguments_of_trl_and_rewards_are_reported_at_once(scene: Path) -> None:
    more = ["preference.trl={temperatur: 1.0, use_vllm: true, max_length: 3, eval_strategy: 'no', temperature: x}"]
    more += ["preference.rewards=[json:nothing, no_such_module:f]"]
    with pytest.raises(ValueError) as caught:
        check(load_recipe(make_preference_recipe(scene, "grpo"), more), ALONE)
    message = str(caught.value)
    for words in (
        "temperatur: GRPOConfig has no such argument; did you mean temperature", "use_vllm: cannot be given",
        "write data.max_length", "eval_strategy: cannot be given", "temperature: given 'x', expected float",
        "'json' has no 'nothing'", "'no_such_module' cannot be imported",
    ):  # fmt: skip
        assert words in message


def test_checkpoint_inside_a_batch_of_rollouts_is_refused(scene: Path, tmp_path: Path) -> None:
    recipe = make_preference_recipe(scene, "grpo")
    more = ["train.save_steps=3", TWICE, f"train.output_dir={tmp_path}"]
    with pytest.raises(ValueError, match="expected a multiple of 4 steps"):
        dart_train.train(recipe, more)
