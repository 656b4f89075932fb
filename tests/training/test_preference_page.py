"""recipes/preference.md: what it names exists, and its example of a reward runs."""

from __future__ import annotations

import re
from typing import Any

from dart_train import rewards
from dart_train.config import Recipe
from dart_train.config.schema import Preference
from dart_train.config.validation import all_paths
from dart_train.training.preference import trainers
from tests.fixtures.run_scene import ROOT

PAGE = (ROOT / "recipes" / "preference.md").read_text(encoding="utf-8")


def test_recipes_and_keys_exist() -> None:
    for name in re.findall(r"\b(\w+_(?:dpo|grpo)\.yaml)", PAGE):
        assert (ROOT / "recipes" / name).is_file(), name
    keys = set(re.findall(r"`((?:train|data|model|preference)\.\w+)", PAGE))
    assert keys and keys <= set(all_paths(Recipe)), keys - set(all_paths(Recipe))
    listed = re.search(r"`preference` has (.*?);", PAGE, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(Preference.model_fields) - {"trl"}


def test_metrics_and_rewards_have_these_names() -> None:
    assert {trainers.SHARING, trainers.DIFFERING} <= set(re.findall(r"`(rows_\w+)`", PAGE))
    listed = re.search(r"`dart_train\.rewards` has (.*?) against", PAGE)
    assert listed is not None and all(hasattr(rewards, name) for name in re.findall(r"`(\w+)`", listed[1]))


def test_example_of_a_reward_runs() -> None:
    source = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert source is not None
    space: dict[str, Any] = {}
    exec(source[1], space)  # the page's own example
    completions = [[{"role": "assistant", "content": text}] for text in ("a cup", "a cat")]
    found = space["short_and_right"](completions=completions, answer=["cup", "cup"])
    assert found[0] > found[1]
