"""Rules of a recipe: forms of a reduction, combinations that cannot work, and a description for every key."""

from __future__ import annotations

import pytest

from dart_train.config import (
    Fixed,
    Progressive,
    Recipe,
    RecipeError,
    read_recipe,
)
from dart_train.config.validation import all_paths, annotation_at
from dart_train.reduction import DART, FastV

SMALL = "model: {path: some/model}\ndata: {train: [{path: rows.json}]}\n"


def issue_paths(text: str, *overrides: str) -> list[str]:
    """The paths of all issues."""
    with pytest.raises(RecipeError) as caught:
        read_recipe(text, overrides)
    return [problem.path for problem in caught.value.issues]


def test_reduction_is_a_name_a_mapping_or_stages() -> None:
    none = read_recipe(SMALL + "reduction: none")
    assert none.reduction.stages == ()
    assert none == read_recipe(SMALL + "reduction: {method: none}")
    one = read_recipe(SMALL + "reduction: {method: dart, keep: 64, image_pivots: 2, schedule: {kind: fixed}}")
    assert one.reduction.reducers() == [DART(keep=64, image_pivots=2)]
    two = read_recipe(SMALL + "reduction: [{method: dart, keep: 288}, {method: fastv, layer: 8, keep: 64}]")
    assert two.reduction.reducers() == [DART(keep=288), FastV(layer=8, keep=64)]
    assert two.reduction.schedule == Fixed()


def test_recipe_without_reduction_is_one_override_away() -> None:
    text = SMALL + "reduction: {method: dart, keep: 64, rule: paper, schedule: {kind: progressive}}\n"
    assert read_recipe(text, ["reduction=none"]) == read_recipe(SMALL + "reduction: none")


@pytest.mark.parametrize(
    ("reduction", "path"),
    [
        ("{method: dart, keep: 64, kep: 3}", "reduction"),
        ("{method: dart, keep: 64.0}", "reduction"),
        ("{method: dart, layer: 2}", "reduction.keep"),
        ("[{method: dart, keep: 64}, {method: nope, keep: 64}]", "reduction.1"),
        ("{stages: [{method: dart, keep: 64}, 5]}", "reduction.stages.1"),
        ("{stages: [], schedule: {kind: fixed}}", "reduction.stages"),
        ("{stages: [{method: dart, keep: 64}], keep: 3}", "reduction.keep"),
        ("{method: none, keep: 64}", "reduction"),
        ("dart", "reduction.keep"),
        ("null", "reduction"),
        ("{method: dart, keep: 64, schedule: {kind: elastik}}", "reduction.schedule.kind"),
        ("{method: dart, keep: 64, schedule: {kind: fixed, choices: [1.0]}}", "reduction.schedule.choices"),
        (
            "{method: dart, keep: 64, schedule: {kind: elastic, choices: [1.5]}}",
            "reduction.schedule.choices.0",
        ),
        (
            "{method: dart, keep: 64, schedule: {kind: progressive, end_high: 1.0}}",
            "reduction.schedule.end_high",
        ),
    ],
)
def test_wrong_reduction_has_its_path(reduction: str, path: str) -> None:
    assert issue_paths(SMALL + f"reduction: {reduction}") == [path]


def test_progressive_defaults_are_those_of_the_released_code() -> None:
    text = SMALL + "reduction: {method: dart, keep: 64, schedule: {kind: progressive}}"
    expected = Progressive(start_low=0.10, start_high=0.10, end_low=0.26, end_high=0.74)
    assert read_recipe(text).reduction.schedule == expected


CONFLICTS = [
    ("train.offload_parameters", ["train.offload_parameters=true"], "train.zero_stage=3"),
    ("train.offload_optimizer", ["train.offload_optimizer=true", "train.zero_stage=0"], "train.zero_stage=1"),
    ("train.deepspeed", ["train.deepspeed=ds.json", "train.offload_optimizer=true"], "train.deepspeed=null"),
    ("train.precision", ["model.dtype=bfloat16", "train.precision=fp16"], "train.precision=bf16"),
    ("train.precision", ["model.dtype=float16", "train.precision=fp32"], "model.dtype=float32"),
    (
        "model.attn_implementation",
        ["model.attn_implementation=flash_attention_2", "model.dtype=float32"],
        "model.dtype=auto",
    ),
    ("distill.enabled", ["distill.enabled=true", "reduction=none"], "distill.enabled=false"),
    ("distill.reduction", ["distill={enabled: true, teacher: reduction}"], "distill.teacher=gap"),
    (
        "distill.reduction",
        ["distill={enabled: true, reduction: {method: dart, layer: 3}}"],
        "distill.teacher=reduction",
    ),
    (
        "distill.reduction",
        ["distill={enabled: true, teacher: reduction, reduction: {method: dart, layer: 1}}"],
        "distill.reduction.layer=2",
    ),
    (
        "distill.reduction",
        ["distill={enabled: true, teacher: reduction, reduction: {method: dartt, layer: 2}}"],
        "distill.reduction.method=dart",
    ),
    ("data.template", ["data.template='{% if messages %}{{ messages }}'"], "data.template=null"),
    ("data.min_pixels", ["data.min_pixels=10", "data.max_pixels=9"], "data.max_pixels=10"),
    (
        "parts",
        ["parts.projector.mode=frozen", "parts.language.mode=frozen"],
        "parts.vision.mode=lora",
    ),
    ("parts.vision.learning_rate", ["parts.vision.learning_rate=1e-5"], "parts.vision.mode=full"),
    ("parts.lora.targets", ["parts.lora.targets=[]"], "parts.lora.targets=null"),
    ("train.epochs", ["train.epochs=null"], "train.max_steps=5"),
    ("train.max_steps", ["data.train.0.streaming=true"], "train.max_steps=5"),
    (
        "data.group_by_length",
        ["data.train.0.streaming=true", "data.group_by_length=true", "train.max_steps=5"],
        "data.group_by_length=false",
    ),
    ("train.best_metric", ["train.best_metric=loss"], "data.validation.0.path=rows.json"),
    ("train.overlay_steps", ["train.overlay_steps=9"], "data.validation.0.path=rows.json"),
    ("reduction.schedule.choices", ["reduction.schedule={kind: elastic, choices: []}"], "reduction.keep=64"),
    (
        "reduction.schedule.start_low",
        ["reduction.schedule={kind: progressive, start_low: 0.5}"],
        "reduction.schedule.start_high=0.6",
    ),
    (
        "reduction.schedule",
        ["reduction={stages: [{method: dart, keep: 9}, {method: dart, keep: 5}], schedule: {kind: elastic}}"],
        "reduction.schedule.kind=fixed",
    ),
    (
        "scorer.temperature_end",
        ["reduction={method: learned, keep: 64}", "scorer.temperature_end=2.0"],
        "scorer.temperature_start=3.0",
    ),
    (
        "train.tokens_per_batch",
        ["train.padding_free=true", "train.tokens_per_batch=512", "data.allow_urls=true"],
        "data.group_by_length=true",
    ),
    ("log.report_to", ["log.report_to=[none, wandb]"], "log.report_to=wandb"),
    (
        "compare.sets.0.streaming",
        ["compare.sets=[{path: asked.json, streaming: true}]"],
        "compare.sets.0.streaming=false",
    ),
    ("compare.budgets", ["compare.budgets=[]"], "compare.budgets=[1.0]"),
    ("compare.methods.1", ["compare.methods=[dart, fastw]"], "compare.methods.1=fastv"),
]


@pytest.mark.parametrize(("path", "broken", "remedy"), CONFLICTS)
def test_conflict_is_reported_and_its_remedy_helps(path: str, broken: list[str], remedy: str) -> None:
    base = SMALL + "reduction: {method: dart, keep: 64}\n"
    assert issue_paths(base, *broken) == [path]
    if path == "reduction.schedule.choices":
        remedy = "reduction.schedule.choices=[1.0]"
    read_recipe(base, [*broken, remedy])


def test_every_key_has_a_description() -> None:
    keys = [path for path in all_paths(Recipe) if "." in path]
    assert len(keys) > 80
    for path in keys:
        *section, name = path.split(".")
        assert annotation_at(Recipe, tuple(section)).model_fields[name].description, path


REFUSED_BY_BACKEND = {
    "fsdp2": {
        "train.zero_stage=3": "train.zero_stage",
        "train.deepspeed=zero.json": "train.deepspeed",
        "train.offload_optimizer=true": "train.offload_optimizer",
        "train.method=dpo": "train.method",
        "model.quantization=nf4": "model.quantization",
        "train.precision=fp16": "train.precision",
        "train.optimizer=adafactor": "train.optimizer",
        "train.liger=true": "train.liger",
        "reduction={method: learned, keep: 64}": "reduction",
    },
    "ddp": {"train.zero_stage=1": "train.zero_stage", "train.offload_optimizer=true": "train.offload_optimizer"},
}


@pytest.mark.parametrize("backend", REFUSED_BY_BACKEND)
def test_what_a_backend_lacks_is_refused_with_all_other_errors(backend: str) -> None:
    for override, path in REFUSED_BY_BACKEND[backend].items():
        assert path in issue_paths(SMALL, f"train.backend={backend}", override), override
        assert "train.epochs" in issue_paths(SMALL, f"train.backend={backend}", override, "train.epochs=null")
    expected = set(REFUSED_BY_BACKEND[backend].values())
    assert expected <= set(issue_paths(SMALL, f"train.backend={backend}", *REFUSED_BY_BACKEND[backend]))
    allowed = ["train.zero_stage=0", "parts.language={mode: full}", "distill.enabled=true"]
    assert read_recipe(SMALL, [f"train.backend={backend}", *allowed]).train.backend == backend
