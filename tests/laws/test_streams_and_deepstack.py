"""Granite 4 Vision adds visual features inside its decoder's forward, after K too; Gemma 3n's layers work on several
streams of hidden states. Both hold the laws of the survey."""

from __future__ import annotations

import pytest
import torch

from dart_train import DART, attach
from tests.zoo import every_model
from tests.zoo.survey import find_form, fresh, ragged, survey

NAMES = ("granite4_vision", "gemma3n")
LAWS = ("keep-all, left padding", "reduced, left padding", "reduced, right padding", "generation", "training")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_laws_of_the_survey(name: str, kernel: str) -> None:
    findings = survey(name, (kernel,), LAWS)
    assert len(findings) == len(LAWS)
    assert all(finding.verdict == "holds" for finding in findings), "\n".join(map(str, findings))


@pytest.mark.parametrize("name", NAMES)
def test_expanded_hidden_states_repeat_the_kept_token_before(name: str) -> None:
    model = every_model.build(name)
    find_form(model)
    inputs = ragged(model)
    stages = [DART(keep=6, layer=1), DART(keep=3, layer=2)]
    found = []
    for output in ("expand", "compact"):
        with torch.no_grad(), attach(model, stages, output=output) as attached:
            found.append(model(**fresh(inputs), output_hidden_states=True).hidden_states)
    length = inputs["input_ids"].shape[1]
    for number, (full, short) in enumerate(zip(*found, strict=True)):
        assert full.shape[-2] == length
        stage = sum(reducer.layer < max(number, 1) for reducer in stages)
        if not stage:
            assert torch.equal(full, short)
            continue
        for row, mask in enumerate(attached.last.stages[stage - 1]):
            kept = int(mask.sum())
            one, other = (states[0] if states.ndim == 4 else states for states in (full, short))
            torch.testing.assert_close(one[row][mask], other[row][-kept:])


def test_second_budget_in_one_forward_is_refused_for_several_streams() -> None:
    model = every_model.build("gemma3n")
    find_form(model)
    refused = pytest.raises(NotImplementedError, match="run two forwards instead")
    with torch.no_grad(), attach(model, DART(keep=5)) as attached, attached.with_teacher(1.0), refused:
        model(**fresh(ragged(model)), use_cache=False)


def test_teacher_gets_the_features_of_layers_before_its_own_stage() -> None:
    model = every_model.build("granite4_vision")
    find_form(model)
    student, teacher, inputs = DART(keep=4, layer=0), DART(keep=6, layer=2), ragged(model)
    with torch.no_grad():
        with attach(model, teacher):
            expected = model(**fresh(inputs), use_cache=False).logits
        with attach(model, student) as attached:
            alone = model(**fresh(inputs), use_cache=False).logits
            with attached.with_teacher(teacher):
                both = model(**fresh(inputs), use_cache=False).logits
    torch.testing.assert_close(both, torch.cat([alone, expected]), rtol=1e-4, atol=1e-4)
