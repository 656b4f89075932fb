"""`data check` reads rows of pairs and of prompts as training does, and reports every fault and lengths of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_train.cli.training import data as main
from dart_train.config import load_recipe
from dart_train.data.issues import BadRowError
from dart_train.models.processors import load_processor
from dart_train.training.preference.rows import open_rows, read_row
from tests.training.preference_scene import make_preference_recipe

PAIR = {"prompt": "<image>What is it?", "images": ["0.png"], "chosen": "a red square", "rejected": "a dog"}
FAULTS: dict[str, dict[str, Any]] = {
    "nothing_supervised": {**PAIR, "rejected": PAIR["chosen"]},
    "empty_turn": {**PAIR, "chosen": " "},
    "unknown_format": {"chosen": "a", "rejected": "b"},
    "missing_image": {**PAIR, "images": ["none.png"]},
    "mark_mismatch": {**PAIR, "images": ["0.png", "1.png"]},
    "unsupported_media": {**PAIR, "videos": ["0.gif"]},
    "duplicate": PAIR,
}


def write_rows(recipe: Path, rows: list[Any]) -> None:
    Path(load_recipe(recipe).data.train[0].path).write_text(json.dumps(rows))


def check(recipe: Path, out: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    code = main(["check", str(recipe), *overrides, "--out", str(out), "--quiet", "--workers", "1"])
    return code, json.loads((out / "check.json").read_text())


def test_pairs_are_read_and_every_fault_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_preference_recipe(tmp_path, "dpo")
    write_rows(recipe, [PAIR, *FAULTS.values(), {**PAIR, "chosen": "yes", "rejected": "no, never at all"}])
    code, summary = check(recipe, tmp_path)
    assert code == 1 and summary["rows"] == 9 and summary["usable"] == 3
    assert {name: item["count"] for name, item in summary["findings"].items()} == dict.fromkeys(FAULTS, 1)
    assert summary["with_images"] == 3 and summary["pairs"] == {"measured": 3, "chosen_longer": 2, "as_long": 0}
    tokens = summary["tokens"]
    assert tokens["chosen"]["max"] > tokens["rejected"]["min"] and tokens["visual"]["max"] == 64
    assert tokens["visual_reduced"]["max"] == 16
    assert "pairs: the chosen answer is longer in 66.7% of them" in capsys.readouterr().out


def test_answers_are_as_long_as_trl_makes_them(tmp_path: Path) -> None:
    """Of the completions that TRL's collator makes, which ends them with the template's end of a turn."""
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    recipe = load_recipe(make_preference_recipe(tmp_path, "dpo"))
    _, summary = check(tmp_path / "llava_dpo.yaml", tmp_path)
    processor: Any = load_processor(recipe.model.path)
    rows = open_rows(recipe.data.train, recipe.data, processor, pairs=True).dataset
    lengths: list[list[int]] = [[], []]
    longest = 0
    for row in rows:
        batch = DataCollatorForVisionPreference(processor)([row])
        for found, mask in zip(lengths, batch["completion_mask"], strict=True):
            found.append(int(mask.sum()))
        longest = max(longest, int(batch["attention_mask"].sum(1).max()))
    for name, counts in zip(("chosen", "rejected"), lengths, strict=True):
        assert abs(summary["tokens"][name]["sum"] - sum(counts)) <= 2 * len(counts)
    assert abs(summary["tokens"]["total"]["max"] - longest) <= 2


def test_max_length_cuts_answers_and_refuses_prompts(tmp_path: Path) -> None:
    recipe = make_preference_recipe(tmp_path, "dpo")
    write_rows(recipe, [{**PAIR, "rejected": "a dog " * 40}])
    _, summary = check(recipe, tmp_path, "data.max_length=200")
    assert list(summary["findings"]) == ["truncated_text"] and summary["usable"] == 1
    code, summary = check(recipe, tmp_path, "data.max_length=60")
    assert code == 1 and "data.max_length is 60" in summary["findings"]["nothing_supervised"]["examples"][0]["message"]


def test_prompts_are_read_without_answers(tmp_path: Path) -> None:
    recipe = make_preference_recipe(tmp_path, "grpo")
    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    write_rows(recipe, [{"prompt": "<image>What?", "images": ["0.png"]}, asked, {"prompt": "What?", "video": "0.gif"}])
    code, summary = check(recipe, tmp_path)
    assert code == 1 and summary["usable"] == 2 and summary["with_images"] == 1
    assert list(summary["findings"]) == ["unsupported_media"] and "pairs" not in summary
    assert summary["tokens"]["total"]["min"] > 0


@pytest.mark.parametrize("key", ["video", "videos"])
def test_videos_are_refused_where_training_would_not_see_them(key: str) -> None:
    with pytest.raises(BadRowError, match=f"reads images, not videos, and the row has {key}"):
        read_row({**PAIR, key: "clip.mp4"}, pairs=True)
    part = [{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "What?"}]
    with pytest.raises(BadRowError, match="images, not videos"):
        read_row({"prompt": [{"role": "user", "content": part}], "chosen": "a", "rejected": "b"}, pairs=True)
