"""No image class of transformers is silently wrong: each holds the laws, or is refused with a reason."""

from __future__ import annotations

import pytest
import torch

from dart_train import attach
from tests.zoo import every_model, survey


@pytest.mark.slow
@pytest.mark.parametrize("name", every_model.names())
def test_no_class_is_wrong(name: str) -> None:
    findings = survey.survey(name)
    bad = [str(finding) for finding in findings if finding.verdict in ("wrong", "crashes")]
    assert not bad, "\n".join(bad)
    refused = [finding for finding in findings if finding.law == "attach"]
    assert all("cannot be attached" in finding.note for finding in refused)


@pytest.mark.parametrize("name", ["ernie4_5_vl_moe", "gemma4", "paligemma"])
def test_classes_that_were_wrong_or_refused_hold(name: str) -> None:
    laws = ["keep-all, right padding", "reduced, right padding"]
    assert {finding.verdict for finding in survey.survey(name, ("sdpa",), laws)} == {"holds"}


TWO_WAY = ("gemma3", "gemma3n", "gemma4", "gemma4_unified", "molmo2", "paligemma")


@pytest.mark.parametrize("name", TWO_WAY)
def test_image_after_a_filled_cache_where_images_attend_in_both_directions(name: str) -> None:
    laws = ["second turn with an image, keep-all", "second turn with an image"]
    assert {finding.verdict for finding in survey.survey(name, ("sdpa",), laws)} == {"holds"}


def test_padded_later_turns_are_refused_where_the_mask_has_the_size_of_a_reduced_layer() -> None:
    model = every_model.build("gemma4")
    first = survey.batch(model, [survey.row_of(model, 4, "image", 6), survey.row_of(model, 9, "image", 5)])
    later = survey.batch(model, [survey.row_of(model, 3, "image", 4), survey.row_of(model, 8, "image", 4)], seed=7)
    later["attention_mask"] = torch.cat([first["attention_mask"], later["attention_mask"]], 1)
    run = lambda model, inputs, **options: model(**survey.fresh(inputs), **options)  # noqa: E731
    with attach(model, survey.RANDOM), pytest.raises(NotImplementedError, match="a padded batch of 2 samples"):
        survey.two_turns(model, first, later, run)


def test_llama4_holds_once_its_output_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own forward reads an attribute that is missing in transformers 5.24. Chunks of 16 tokens are cut by place."""
    monkeypatch.setattr(every_model.MoeCausalLMOutputWithPast, "image_outputs", None, raising=False)
    laws = ["keep-all, left padding", "reduced, left padding", "generation", "second turn with an image", "training"]
    for name in ("llama4", "llama4+small_chunks"):
        assert {finding.verdict for finding in survey.survey(name, ("sdpa",), laws)} == {"holds"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("florence2", "encoder-decoder"),
        ("mllama", "cross-attention"),
        ("diffusion_gemma", "denoising"),
        ("git", "without tokens for it"),
        ("kosmos-2", "image_embeds_position_mask"),
        ("inkling_mm_model", "by place in the sequence"),
        ("blip-2", "runs the language model alone"),
        ("qwen4_exp", "compressed over neighbouring places"),
        ("glm5_next", "indexer of an earlier layer"),
    ],
)
def test_refusals_name_the_reason(name: str, reason: str) -> None:
    if name == "inkling_mm_model":
        pytest.importorskip("scipy")  # without it transformers cannot build the model
    (finding,) = survey.survey(name)
    assert finding.verdict == "refused" and reason in finding.note
