"""Reading recipes: strict, all issues at once, overrides, and a YAML text that reads back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dart_train.config import Elastic, Recipe, RecipeError, load_recipe, read_recipe
from dart_train.config.validation import all_paths
from dart_train.config.yaml import dump, parse
from dart_train.reduction import DART, FastV

SMALL = "model: {path: some/model}\ndata: {train: [{path: rows.json}]}\n"


def problems(text: str, *overrides: str, needs: tuple[str, ...] = ()) -> dict[str, str]:
    """path -> message."""
    with pytest.raises(RecipeError) as caught:
        read_recipe(text, overrides, needs)
    return {problem.path: str(problem) for problem in caught.value.issues}


# Reading


def test_only_the_model_is_required() -> None:
    recipe = read_recipe("model: {path: some/model}")
    assert recipe.model.path == "some/model"
    assert recipe.reduction.reducers() == [DART(keep=0.222, layer=2)]
    assert recipe.reduction.schedule == Elastic()
    assert problems("") == {"model.path": "model.path: missing; expected some text"}


def test_section_may_be_left_empty() -> None:
    assert read_recipe(SMALL + "train:\nlog:\n") == read_recipe(SMALL)


def test_all_issues_are_reported_at_once_with_their_paths() -> None:
    text = """
        model: {dtype: bf16}
        reduction: {method: dartt, keep: 64}
        parts: {vision: {mode: frozen, learning_rate: 1e-5}, lora: {rank: 0}}
        data: {train: [{images: here, limit: yes}, hello], min_pixels: 10, max_pixels: 5}
        train: {learning_rat: 1e-4, epochs: three, zero_stage: true, max_grad_norm: .nan}
    """
    found = problems(text, "log.modes=auto", needs=("data.validation",))
    assert found.keys() == {
        "model.path",
        "model.dtype",
        "reduction",
        "parts.vision.learning_rate",
        "parts.lora.rank",
        "data.train.0.path",
        "data.train.0.limit",
        "data.train.1",
        "data.min_pixels",
        "data.validation",
        "train.learning_rat",
        "train.epochs",
        "train.zero_stage",
        "train.max_grad_norm",
        "log.modes",
    }
    assert found["model.dtype"] == ("model.dtype: given 'bf16', expected one of auto, float32, bfloat16, float16")
    assert found["train.learning_rat"].endswith("did you mean train.learning_rate?")
    assert "did you mean dart?" in found["reduction"]


def test_did_you_mean_names_the_section_of_a_key() -> None:
    assert problems(SMALL + "learning_rate: 1e-4")["learning_rate"].endswith("mean train.learning_rate?")


def test_required_key_is_reported_once() -> None:
    assert list(problems(SMALL, needs=("compare.sets",))) == ["compare.sets"]
    assert list(problems(SMALL + "compare: {sets: [{}]}", needs=("compare.sets",))) == ["compare.sets.0.path"]


@pytest.mark.parametrize(
    ("path", "given", "read"),
    [
        ("train.learning_rate", "2e-5", 2e-5),
        ("train.epochs", "3", 3.0),
        ("train.max_steps", "010", 10),
        ("log.name", "2026-01-31", "2026-01-31"),
        ("log.name", "off", "off"),
        ("log.name", "12:30", "12:30"),
        ("log.name", "null", None),
        ("log.tags", "alone", ("alone",)),
        ("log.tags", "[a, '7']", ("a", "7")),
        ("data.train.0.columns", "{question: q}", {"question": "q"}),
        ("parts.lora.targets", "[q_proj, v_proj]", ("q_proj", "v_proj")),
    ],
)
def test_yaml_values_keep_their_type(path: str, given: str, read: Any) -> None:
    value: Any = read_recipe(SMALL, [f"{path}={given}"])
    for name in path.split("."):
        value = value[int(name)] if name.isdigit() else getattr(value, name)
    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize(
    "wrong",
    [
        "train.max_steps=1.5",
        "train.max_steps=true",
        "train.max_steps=0",
        "train.max_steps='7'",
        "train.learning_rate=-1e-4",
        "train.learning_rate=true",
        "train.learning_rate=.inf",
        "train.gradient_checkpointing=1",
        "train.zero_stage=1.0",
        "train.eval_budgets=[0.0]",
        "train.eval_budgets=[64.0]",
        "log.tags=[7]",
        "log.report_to=[wanbd]",
        "model.path=''",
        "compare.checkpoints=[a]",
        "compare.checkpoints={a: 1}",
    ],
)
def test_wrong_type_or_range_is_refused(wrong: str) -> None:
    path = wrong.partition("=")[0]
    assert [found for found in problems(SMALL, wrong) if found.startswith(path)]


def test_duplicate_key_is_reported_with_both_lines() -> None:
    found = problems("model: {path: x}\ntrain:\n  seed: 1\n  epochs: 2\n  seed: 3\nmodel: {path: y}\n")
    assert found == {
        "seed": "seed: given twice, in lines 3 and 5; keep one",
        "model": "model: given twice, in lines 1 and 6; keep one",
    }


def test_anchors_are_copied_and_can_be_overridden_separately() -> None:
    text = "model: {path: x}\ndata:\n  train: &rows [{path: rows.json}]\n  validation: *rows\n"
    recipe = read_recipe(text, ["data.validation.0.limit=5"])
    assert (recipe.data.train[0].limit, recipe.data.validation[0].limit) == (None, 5)
    assert parse("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


@pytest.mark.parametrize(
    "text",
    [
        "model: [",
        "model: !!python/name:os.system x",
        "&a [*a]",
        "!!bool so",
        "model: !!int x",
        "- x",
        "just words",
    ],
)
def test_unreadable_text_is_reported(text: str) -> None:
    problems(text)


def test_missing_file_suggests_a_similar_name(tmp_path: Path) -> None:
    (tmp_path / "llava_dart.yaml").write_text(SMALL)
    with pytest.raises(RecipeError, match=r"did you mean .*llava_dart\.yaml"):
        load_recipe(tmp_path / "lava_dart.yaml")
    assert load_recipe(tmp_path / "llava_dart.yaml").train.output_dir == "runs/llava_dart"


# Overrides


def test_overrides_reach_every_depth_and_win() -> None:
    given = [
        "train.learning_rate=1e-3",
        "data.train.0.limit=100",
        "data.train.1.path=more.json",
        "data.seed=4",
    ]
    recipe = read_recipe(SMALL + "train: {learning_rate: 5}\n", [*given, "reduction.keep=64", "reduction.method=fastv"])
    assert recipe.train.learning_rate == 1e-3
    assert [(source.path, source.limit) for source in recipe.data.train] == [
        ("rows.json", 100),
        ("more.json", None),
    ]
    assert recipe.data.seed == 4
    assert recipe.reduction.reducers() == [FastV(keep=64)]


def test_all_wrong_overrides_are_reported() -> None:
    found = problems(SMALL, "nonsense", "data.train.5.limit=1", "model.path.x=1", "train.seed=[", "train.sed=1")
    assert found.keys() == {"", "data.train.5", "model.path.x", "train.seed", "train.sed"}


# Writing


def test_resolved_recipe_reads_back_the_same() -> None:
    text = SMALL + "log: {tags: ['on', '1e-4', '2e-5', '12:30', '010', '~', '', 'null', '<<'], name: '7'}\n"
    for overrides in (
        [],
        ["reduction=none"],
        ["reduction=[{method: dart, keep: 8}, {method: fastv, keep: 4, layer: 5}]"],
        ["reduction={method: dart, keep: 64, schedule: {kind: progressive}}", "train.learning_rate=2e-5"],
        ["compare.methods=[dart, {method: dart, rule: paper}]", "compare.sets=[{path: q, metrics: anls}]"],
    ):
        recipe = read_recipe(text, overrides)
        assert read_recipe(recipe.to_yaml(), name="elsewhere") == recipe


TEXTS = st.text(st.characters(blacklist_categories=("Cs",)))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
@example("one\x85two\u2028three\n four\t")
@settings(deadline=None, derandomize=True)
def test_yaml_round_trip(data: Any) -> None:
    assert parse(dump(data)) == data


@given(st.sampled_from(all_paths(Recipe)), PLAIN)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_fuzz_any_value_of_any_key_is_read_or_reported(place: str, value: Any) -> None:
    text = dump({"model": {"path": "x"}, "reduction": {"method": "dart", "keep": 64}})
    try:
        recipe = read_recipe(text, [f"{place}={dump(value)}"])
    except RecipeError as error:
        assert error.issues
    else:
        assert read_recipe(recipe.to_yaml()) == recipe


@given(st.dictionaries(st.sampled_from(["method", "keep", "layer", "schedule", "stages", "per", "x"]), PLAIN) | PLAIN)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_fuzz_reduction_is_read_or_reported(reduction: Any) -> None:
    try:
        read_recipe(dump({"model": {"path": "x"}, "reduction": reduction}))
    except RecipeError as error:
        assert error.issues
