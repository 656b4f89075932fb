"""Several stages are one method; its budget is what the last stage keeps."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dart_train import DART, attach
from dart_train.config import RecipeError, load_recipe
from dart_train.evaluation.comparison_grid import grid_cells, prepare
from dart_train.evaluation.cost import PrefillFlops, PrefillShape
from dart_train.evaluation.generate import LoadedCheckpoint
from dart_train.evaluation.report.build import measurement_facts
from dart_train.evaluation.results import ComparisonResults
from dart_train.reduction import Random
from tests.evaluation import scene
from tests.zoo import FAMILIES, make_batch

STAGES = "[{method: dart, layer: 1, keep: 0.5}, {method: random, layer: 3, keep: 0.25}]"
PYRAMID = f"compare.methods=[{{name: pyramid, stages: {STAGES}}}]"
TOKENS = 64  # of an image
HEAD, KV_HEADS, LAYERS, FLOAT = 16, 2, 5, 4


def cells(done: Path, *overrides: str):
    return [cell for cell in grid_cells(load_recipe(done / "compare.yaml", overrides)) if cell.stages]


def test_budget_is_that_of_the_last_stage_and_earlier_stages_scale(done: Path) -> None:
    found = cells(done, PYRAMID, "compare.budgets=[0.25, 0.4, 0.75, 8]")
    kept = {cell.budget: [stage.keep for stage in cell.stages] for cell in found}
    assert kept == {"0.25": [0.5, 0.25], "0.4": [0.8, 0.4], "0.75": [1.0, 0.75], "8": [16, 8]}
    assert {cell.method for cell in found} == {"pyramid"} and [stage.layer for stage in found[0].stages] == [1, 3]


def test_method_reduction_has_all_stages_of_the_recipe(done: Path) -> None:
    (found,) = cells(done, f"reduction={STAGES}", "compare.methods=[reduction]", "compare.budgets=[0.125]")
    assert found.name == "base / reduction / 0.125"
    assert found.stages == (DART(layer=1, keep=0.25), Random(layer=3, keep=0.125))


def test_stages_without_a_name_are_named_by_their_methods(done: Path) -> None:
    found = cells(done, f"compare.methods=[{{stages: {STAGES}}}, {{name: plain, method: dart}}]")
    assert {cell.method for cell in found} == {"dart at 1 then random at 3", "plain"}


def test_method_may_be_measured_with_some_checkpoints_alone(done: Path) -> None:
    both = f"compare.checkpoints={{one: {done}/llava, two: {done}/llava}}"
    found = cells(done, both, "compare.methods=[dart, {method: random, checkpoints: [two]}]", "compare.budgets=[8]")
    assert [cell.key[:2] for cell in found if cell.method != "full"] == [
        ("one", "dart"),
        ("two", "dart"),
        ("two", "random"),
    ]


def test_method_may_have_budgets_of_its_own(done: Path) -> None:
    merged = "{method: dart, merge: nearest, name: merged, budgets: [0.25, 8]}"
    found = cells(done, f"compare.methods=[dart, {merged}]", "compare.budgets=[0.5, 0.25]")
    assert [(cell.method, cell.budget) for cell in found] == [
        ("dart", "0.5"), ("dart", "0.25"), ("merged", "0.25"), ("merged", "8")
    ]  # fmt: skip


@pytest.mark.parametrize(("methods", "message"), [
    ("[{method: dart, budgets: []}]", "expected a list of ratios or numbers of tokens"),
    ("[{method: dart, checkpoints: []}]", "expected a list of names of compare.checkpoints"),
    ("[{method: dart, checkpoints: [other]}]", "other not in compare.checkpoints"),
    ("[{method: dart, budgets: [0.1, 0]}]", "budgets: keep=0"),
    ("[{method: dart, keep: 0.1}]", "or give it `budgets`"),
    ("[{stages: [{method: dart}, {method: dart, layer: 3, keep: 0.5}]}]", "stages.0: keep is missing"),
    ("[{stages: [{method: dart}, {method: dart, layer: 3, kep: 1}]}]", "did you mean keep?"),
    ("[{stages: [{method: dart, keep: 0.2}, {method: dart, layer: 3, keep: 0.5}]}]", "at most as much as"),
    ("[{stages: [{method: dart, keep: 64}, {method: dart, layer: 3, keep: 0.5}]}]", "only ratios or only numbers"),
    ("[{stages: [{method: keep_all, keep: 1.0}]}]", "keep_all drops no tokens"),
    ("[{stages: [], method: dart}]", "method: unknown key next to stages"),
    ("[{stages: dart}]", "expected a list of mappings"),
    ("[dart, {method: random, name: dart}]", "leave one out, or give it a name"),
    ("[dart, dart]", "has the name 'dart', as an earlier method does"),
])  # fmt: skip
def test_invalid_stages_are_errors(done: Path, methods: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(done / "compare.yaml", [f"compare.methods={methods}"])
    assert message in str(caught.value) and "compare.methods." in str(caught.value)


def test_method_reduction_needs_a_reduction(done: Path) -> None:
    with pytest.raises(RecipeError, match="the recipe's reduction is none"):
        load_recipe(done / "compare.yaml", ["reduction=none", "compare.methods=[reduction]"])


@pytest.mark.parametrize(("layers", "message"), [((3, 1), "after the one before"), ((1, 9), "the model has 5 layers")])
def test_stages_that_the_model_does_not_have_are_errors(done: Path, layers: tuple[int, int], message: str) -> None:
    stages = ", ".join(f"{{method: dart, layer: {layer}, keep: 0.5}}" for layer in layers)
    with pytest.raises(ValueError, match=f"pyramid: .*{message}|{message}"):
        prepare(load_recipe(done / "compare.yaml", [f"compare.methods=[{{name: pyramid, stages: [{stages}]}}]"]), False)


@pytest.fixture(scope="module")
def compared(done: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparisonResults:
    """A comparison of the pyramid at eight tokens."""
    out = tmp_path_factory.mktemp("pyramid") / "out"
    more = ["compare.budgets=[8]", "compare.sets.0.limit=6", "compare.timing=true", "compare.timing_repeats=1"]
    recipe = load_recipe(done / "compare.yaml", [PYRAMID, f"compare.output_dir={out}", *more])
    return scene.compare_without_report(recipe)


def test_answers_of_stages_equal_those_of_attach(done: Path, compared: ComparisonResults) -> None:
    recipe = load_recipe(done / "compare.yaml", ["compare.sets.0.limit=6"])
    subject = LoadedCheckpoint(recipe, recipe.model.path, torch.device("cpu"))
    here = [line for line in scene.lines(compared.folder) if line["method"] == "pyramid"]
    with attach(subject.model, [DART(keep=16, layer=1), Random(keep=8, layer=3)]):
        for line, question in zip(here, prepare(recipe, progress=False).questions, strict=True):
            assert line["prediction"] == scene.plainly(subject.model, subject.processor, question)
            assert line["kept"] == (8 if line["visual_tokens"] else 0)


def test_kv_bytes_of_stages(compared: ComparisonResults) -> None:
    with (compared.folder / "cost.csv").open(newline="") as file:
        full, pyramid = csv.DictReader(file)
    length = int(full["prompt_tokens"])
    tokens = length + 2 * (length - TOKENS + 16) + (LAYERS - 3) * (length - TOKENS + 8)
    assert int(pyramid["kv_bytes"]) == 2 * KV_HEADS * HEAD * FLOAT * tokens and int(pyramid["kept"]) == 8


def test_report_lists_the_options_of_every_stage(compared: ComparisonResults) -> None:
    described = measurement_facts(compared)["method pyramid / 8"]
    assert "layer=1" in described and "; then method=random, keep=8, layer=3" in described


def test_flops_of_stages_match_a_counted_forward() -> None:
    model, batch = FAMILIES["llava"].model("eager"), make_batch("llava", images=(1, 1), question_words=(4, 4))
    rows, length = batch["input_ids"].shape
    counter = FlopCounterMode(display=False)
    with attach(model, [DART(keep=32, layer=1), DART(keep=8, layer=3)]), torch.no_grad(), counter:
        model(**batch, logits_to_keep=1)
    arithmetic = PrefillFlops(model, batch, rows * TOKENS)
    steps = ((1, length - TOKENS + 32), (3, length - TOKENS + 8))
    assert arithmetic.of(PrefillShape(rows, length, steps, rows * TOKENS)) == pytest.approx(
        counter.get_total_flops(), rel=0.12
    )


def _recipe():
    from dart_train.config import read_recipe

    return read_recipe("model: {path: x, dtype: float32}")
