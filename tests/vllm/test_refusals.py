"""What is not served is refused when the engine starts, with the reason and what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dart_train import DART, FastV, Learned
from dart_train.reduction.reducer_file import REDUCER_FILE, ReducerFile
from dart_train.reduction.tower import TowerDART
from dart_train.reduction.trained_budgets import TrainedBudgets
from dart_train.vllm_plugin.served_reduction import ServedReduction, decide
from tests.vllm.conftest import ROOT, Engine, Expected, run_job, save_served
from tests.vllm.scenes import SHAPE_QUESTIONS, draw
from tests.zoo.folders import save_folder

TINY_BASE = ROOT / "data/tiny_base"
SERVABLE = DART(keep=16, layer=0, text_pivots=0, per="image")
ELASTIC = TrainedBudgets(((1.0,), (16,), (0.25,)))
HOW_TO_ALLOW = '{"dart_untrained": true}'


def decided(stages: list[Any], settings: dict[str, Any] | None = None, **trained: Any) -> ServedReduction | None:
    return decide(ReducerFile(tuple(stages), **trained), settings or {}, "folder", None)


@pytest.mark.parametrize(
    ("stages", "reasons"),
    [
        ([DART(keep=64)], ["layer=2", "per='sample'", "text_pivots=4"]),
        ([DART(keep=64, layer=2), DART(keep=16, layer=8)], ["2 stages (layers 2, 8)"]),
        ([FastV(keep=64, layer=2, per="image")], ["layer=2", "FastV looks at the prompt"]),
        ([Learned(keep=64, layer=0, per="image")], ["guidance='prompt'"]),
    ],
)
def test_reductions_that_look_at_the_prompt(stages: list[Any], reasons: list[str]) -> None:
    with pytest.raises(ValueError, match="the reduction of folder cannot be served by vLLM") as caught:
        decided(stages)
    for part in [
        *reasons,
        "The nearest setting that can: dart(",
        "export RUN --for vllm --convert",
        "dart_train serve",
    ]:
        assert part in str(caught.value)


def test_what_contradicts_the_training() -> None:
    known = {"trained_stages": (SERVABLE,), "trained_budgets": ELASTIC}
    for keep in (16, 0.25, 1.0):
        assert decided([SERVABLE], {"dart_keep": keep}, **known) is not None
    with pytest.raises(ValueError, match=r"trained at full tokens, 16 tokens, 0\.25 of the tokens, not at 32 tokens"):
        decided([SERVABLE], {"dart_keep": 32}, **known)
    with pytest.raises(
        ValueError, match=r"trained with dart\(keep=64, layer=2\), not with dart\(keep=16, layer=0"
    ) as no:
        decided([SERVABLE], trained_stages=(DART(keep=64),))
    assert HOW_TO_ALLOW in str(no.value)
    with pytest.raises(ValueError, match="trained without a reduction"):
        decided([SERVABLE], trained_stages=())
    assert decided([replace(SERVABLE, keep=32)], calibration={"rule": "any"}, **known) is not None
    with pytest.raises(ValueError, match="a stage in the vision tower"):
        decided([SERVABLE], tower=TowerDART())
    allowed = {"dart_untrained": True, "dart_keep": 32}
    served = decided([SERVABLE], allowed, trained_stages=(DART(keep=64),), trained_budgets=ELASTIC)
    assert served is not None and served.reducer.keep == 32


def test_budgets_of_requests() -> None:
    served = decided([SERVABLE], trained_budgets=ELASTIC)
    assert served is not None and served == ServedReduction.of(type("Config", (), {"dart_train": served.to_json()}))
    assert served.with_keep(None) == SERVABLE and served.with_keep(0.25).keep == 0.25
    with pytest.raises(ValueError, match=r"dart_keep of the request: the model was trained at .*, not at 32 tokens"):
        served.with_keep(32)
    for wrong in (0, -1, 1.5, "16", True):
        with pytest.raises(ValueError, match="dart_keep of the request: keep="):
            served.with_keep(wrong)
    assert served.largest_keep() == 1.0
    fixed = decided([SERVABLE], trained_budgets=TrainedBudgets(((16,),)))
    assert fixed is not None and fixed.largest_keep() == 16
    free = decided([SERVABLE], {"dart_untrained": True}, trained_budgets=ELASTIC)
    assert free is not None and free.with_keep(32).keep == 32


def test_settings() -> None:
    assert decided([]) is None  # trained without a reduction
    assert decided([DART(keep=64)], {"dart_reducer": "none"}) is None
    base = decide(None, {"dart_keep": 0.25}, "folder", None)  # a model without reducer.json
    assert base is not None and base.reducer == DART(
        keep=0.25, layer=0, text_pivots=0, per="image", pivot="key_min", merge="nearest"
    )
    for settings, message in (
        ({"dart_kept": 3}, "dart_kept is not known; expected dart_keep, dart_untrained, dart_reducer"),
        ({"dart_keep": 0}, "dart_keep: keep=0"),
        ({"dart_untrained": 1}, "dart_untrained=1: expected true or false"),
    ):
        with pytest.raises(ValueError, match=message):
            decided([SERVABLE], settings)


def engine_settings(tmp_path: Path) -> list[tuple[Path, dict[str, Any], str | None]]:
    """Model, options of the engine, and the refusal."""
    served = save_served(TINY_BASE, tmp_path / "served", [SERVABLE], ELASTIC)
    as_trained = save_served(TINY_BASE, tmp_path / "layer_2", [DART(keep=64)])
    other = save_served(save_folder("llava_onevision", tmp_path / "base"), tmp_path / "other", [SERVABLE])
    scaled = save_served(TINY_BASE, tmp_path / "scaled", [SERVABLE])
    config = json.loads((TINY_BASE / "config.json").read_text())
    config["text_config"]["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
    (scaled / "config.json").unlink()
    (scaled / "config.json").write_text(json.dumps(config))
    damaged = save_served(TINY_BASE, tmp_path / "damaged", [SERVABLE])
    (damaged / REDUCER_FILE).write_text('{"format": 7}')
    drafts = {"method": "draft_model", "model": str(TINY_BASE), "num_speculative_tokens": 2}
    ngram = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    none = {"hf_overrides": {"dart_reducer": "none"}}
    return [
        (served, {}, None),
        (served, {"speculative_config": ngram, "enable_prefix_caching": True}, None),
        (served, {"hf_overrides": {"dart_keep": 0.25}}, None),
        (as_trained, none, None),
        (other, none, None),
        (damaged, none, None),
        (as_trained, {}, "text_pivots=4: text pivots depend on the question"),
        (served, {"hf_overrides": {"dart_keep": 17}}, "not at 17 tokens"),
        (served, {"hf_overrides": {"dart_size": 17}}, "dart_size is not known"),
        (served, {"hf_overrides": {"dart_reducer": str(TINY_BASE)}}, "there is no reducer.json"),
        (other, {}, "the reduction of LlavaOnevisionForConditionalGeneration is not served by vLLM"),
        (damaged, {}, "format 7, expected 1"),
        (scaled, {}, "rope_type='linear'"),
        (served, {"video_pruning_rate": 0.5}, "video_pruning_rate is set"),
        (served, {"enable_mm_embeds": True}, "enable_mm_embeds is set"),
        (served, {"mm_processor_kwargs": {"dart_keep": 16}}, "dart_keep is in --mm-processor-kwargs"),
        (served, {"speculative_config": drafts}, "speculative method 'draft_model': expected one of ngram"),
        (served, {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}, "pipeline_parallel_size > 1"),
        (served, {"enable_lora": True, "enable_tower_connector_lora": True}, "enable_tower_connector_lora"),
        (served, {"compilation_config": {"cudagraph_mm_encoder": True}}, "cudagraph_mm_encoder"),
    ]


@pytest.mark.vllm
@pytest.mark.slow
def test_engine_settings(vllm_python: Path, tmp_path: Path) -> None:
    cases = engine_settings(tmp_path)
    configs = [{"model": str(folder), "engine": options} for folder, options, _ in cases]
    found = run_job(vllm_python, tmp_path, {"configs": configs})["refusals"]
    for (folder, options, expected), message in zip(cases, found, strict=True):
        if expected is None:
            assert message is None, (folder.name, options, message)
        else:
            assert message is not None and expected in message, (folder.name, options, message)


@pytest.mark.vllm
@pytest.mark.slow
def test_budget_that_was_not_trained(engine: Engine, tmp_path: Path) -> None:
    """A request at another budget is refused by itself; the engine continues."""
    folder = save_served(TINY_BASE, tmp_path / "served", [SERVABLE], ELASTIC)
    tiny = Expected(TINY_BASE)
    images = draw(tmp_path / "images", [(96, 96)])
    request = tiny.request(SHAPE_QUESTIONS[0], images)
    found = engine(folder, [[{**request, "budget": 32}], [{**request, "budget": 0.25}]])["rounds"]
    assert "not at 32 tokens" in found[0][0]["error"]
    assert found[1][0]["tokens"] == tiny.answers([request], DART(**{**vars(SERVABLE), "keep": 0.25}))[0]["tokens"]
