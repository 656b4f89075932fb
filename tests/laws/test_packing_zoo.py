"""Packed rows in every class of transformers that a reduction runs on: as in the padded batch, or refused."""

from __future__ import annotations

import pytest
import torch

from dart_train import attach
from dart_train.conformance.packed import without_padding
from dart_train.hooks.packing import why_not_packed
from dart_train.models.structure import find_parts
from tests.zoo import every_model, survey

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", every_model.names())
def test_choices_and_logits_are_those_of_the_padded_batch(name: str) -> None:
    try:
        attach(every_model.build(name, meta=True), survey.RANDOM).remove()
    except (NotImplementedError, ValueError, ImportError) as error:
        pytest.skip(f"no reduction: {error}")
    for kernel in [kernel for kernel in survey.KERNELS if kernel in every_model.kernels(name)]:
        model = every_model.build(name, kernel)
        try:
            survey.find_form(model)
        except survey.PlainModelFails as error:
            pytest.skip(f"the plain model fails: {error}")
        padded = survey.ragged(model, "right")
        real, packed = padded["attention_mask"].bool(), without_padding(padded)
        with torch.no_grad(), attach(model, survey.SIMILAR) as attached:
            if why_not_packed(find_parts(model)) is not None:
                with pytest.raises(NotImplementedError, match=r"rows cannot be packed|an indexer selects"):
                    model(**survey.fresh(padded), use_cache=False)
                    model(**survey.fresh(packed), use_cache=False)
                continue
            expected, before = model(**survey.fresh(padded), use_cache=False).logits, attached.last
            found, after = model(**survey.fresh(packed), use_cache=False).logits, attached.last
        assert before is not None and after is not None
        assert torch.equal(after.mask[0], before.mask[real])
        assert survey.difference(found, expected[real][None], after.mask) < survey.TOLERANCE
