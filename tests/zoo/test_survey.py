"""No image class of transformers is silently wrong: each holds the laws, or is refused with a reason."""

from __future__ import annotations

import pytest

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
    ],
)
def test_refusals_name_the_reason(name: str, reason: str) -> None:
    if name == "inkling_mm_model":
        pytest.importorskip("scipy")  # without it transformers cannot build the model
    (finding,) = survey.survey(name)
    assert finding.verdict == "refused" and reason in finding.note
