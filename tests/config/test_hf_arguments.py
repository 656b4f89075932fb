"""`train.hf`: names and values are checked against transformers' own dataclass, together with all other errors."""

from __future__ import annotations

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from dart_train.config import Recipe, RecipeError, read_recipe
from dart_train.config.hf_arguments import KEY_OF, REFUSED
from dart_train.config.validation import all_paths

SMALL = "model: {path: some/model}\ndata: {train: [{path: rows.json}]}\n"
FORMER = {"warmup_ratio", "group_by_length"}  # of transformers 4: many recipes still have them


def issues(*overrides: str) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        read_recipe(SMALL, overrides)
    return {issue.path: str(issue) for issue in caught.value.issues}


def test_reserved_names_are_those_of_transformers() -> None:
    known = {field.name for field in fields(TrainingArguments)}
    assert KEY_OF.keys() | REFUSED.keys() <= known | FORMER
    assert not KEY_OF.keys() & REFUSED.keys()


def test_replacements_are_keys_of_a_recipe() -> None:
    assert set(KEY_OF.values()) <= set(all_paths(Recipe))


def test_all_wrong_arguments_are_reported_at_once() -> None:
    found = issues(
        "train.hf={adam_epsilonn: 1.0, optim: sgd, label_smoothing_factor: 0.1, tf32: 3, torch_empty_cache_steps: x}",
        "train.adam_betas=[0.9]",
    )
    assert "did you mean adam_epsilon" in found["train.hf.adam_epsilonn"]
    assert "write train.optimizer" in found["train.hf.optim"]
    assert "the reduction has moved the labels" in found["train.hf.label_smoothing_factor"]
    assert {"train.hf.tf32", "train.hf.torch_empty_cache_steps", "train.adam_betas"} <= found.keys()


def test_other_arguments_are_taken() -> None:
    read = read_recipe(SMALL, ["train.hf={adam_epsilon: 1.0e-6, lr_scheduler_kwargs: {power: 2}, log_level: info}"])
    assert read.train.hf == {"adam_epsilon": 1e-6, "lr_scheduler_kwargs": {"power": 2}, "log_level": "info"}


@pytest.mark.parametrize(
    ("path", "broken", "remedy"),
    [
        ("train.adam_betas", ["train.adam_betas=[0.8, 0.9]", "train.optimizer=sgd"], "train.optimizer=adamw_torch"),
        ("train.optimizer", ["train.optimizer=adafactor"], "train.zero_stage=0"),
        ("train.optimizer", ["train.optimizer=sgd", "train.offload_optimizer=true"], "train.offload_optimizer=false"),
        ("train.min_learning_rate", ["train.min_learning_rate=1e-5", "train.lr_scheduler=linear"],
         "train.lr_scheduler=cosine"),
        ("train.min_learning_rate", ["train.min_learning_rate=1.0"], "train.learning_rate=2.0"),
        ("train.lr_scheduler", ["train.lr_scheduler=warmup_stable_decay"],
         "train.hf={lr_scheduler_kwargs: {num_decay_steps: 5}}"),
        ("train.early_stopping_patience", ["train.early_stopping_patience=2"], "data.validation.0.path=rows.json"),
        ("train.early_stopping_threshold", ["train.early_stopping_threshold=0.1"], "train.early_stopping_threshold=0"),
    ],
)  # fmt: skip
def test_conflict_is_reported_and_its_remedy_helps(path: str, broken: list[str], remedy: str) -> None:
    assert list(issues(*broken)) == [path]
    read_recipe(SMALL, [*broken, remedy])
