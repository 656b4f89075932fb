"""The length limit shortens text or drops the row, and never removes an image token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_train.data.encoder import Encoder
from dart_train.data.formats import normalise
from dart_train.data.issues import BadRowError
from dart_train.data.supervision import IGNORED
from dart_train.data.truncation import TooLongError
from tests.zoo import FAMILIES, make_image, sentence

IMAGES = [make_image(seed) for seed in range(4)]


def talk(*exchanges):
    """(number of images, words of the question, words of the answer) for each exchange."""
    messages = []
    for number, (images, question_words, answer_words) in enumerate(exchanges):
        question = "<image>" * images + sentence(max(1, question_words), number)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": sentence(max(1, answer_words), 50 + number)})
    total = sum(images for images, _, _ in exchanges)
    return normalise({"messages": messages, "images": ["a.png"] * total}, row_id="the-row")


def encode(name, row, limit=None, policy="truncate_text"):
    encoder = Encoder(FAMILIES[name].processor(), limit, policy)
    return encoder, encoder.encode(row, IMAGES[: len(row.images)])


def visual(encoder, encoded):
    ids = encoded.features["input_ids"]
    return sum(int((ids == token).sum()) for token in encoder.image_tokens.visual)


EXCHANGES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(EXCHANGES.filter(lambda x: sum(e[0] for e in x) <= 4), st.integers(20, 500), st.sampled_from(list(FAMILIES)))
def test_truncation_keeps_all_image_tokens_and_the_limit(exchanges, limit, name):
    row = talk(*exchanges)
    encoder, full = encode(name, row)
    try:
        _, short = encode(name, row, limit)
    except BadRowError as bad:
        assert bad.code == "too_long" and full.length > limit
        assert visual(encoder, full) > 0 or limit < 60  # text alone can always be shortened, markup cannot
        return
    assert short.length <= limit and visual(encoder, short) == visual(encoder, full)
    for key, value in full.features.items():  # the images themselves are the same
        if value.shape != full.features["input_ids"].shape:
            assert torch.equal(value, short.features[key])
        else:
            assert short.features[key].shape == short.features["input_ids"].shape
    assert (short.features["labels"] != IGNORED).any()
    assert bool(short.notes) == (full.length > limit)
    sizes = tuple(image.size for image in IMAGES[: len(row.images)])
    measured = Encoder(FAMILIES[name].processor(), limit, "truncate_text").measure(row, sizes)
    assert (measured.total, measured.used) == (full.length, short.length)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "idefics3"])
def test_truncation_drops_the_last_exchanges_first(name):
    row = talk((1, 4, 4), (0, 4, 4), (0, 4, 4))
    encoder, first_two = encode(name, talk((1, 4, 4), (0, 4, 4)))
    _, short = encode(name, row, first_two.length + 5)
    assert torch.equal(short.features["input_ids"], first_two.features["input_ids"])
    assert short.features["labels"][0][short.features["labels"][0] != IGNORED][-1] == eos(encoder)


def eos(encoder):
    return encoder.processor.tokenizer.eos_token_id


def test_truncation_cuts_the_middle_of_a_long_question():
    encoder, full = encode("qwen2_vl", talk((1, 100, 4)))
    _, short = encode("qwen2_vl", talk((1, 100, 4)), full.length - 200)
    supervised = [e.features["labels"][e.features["labels"] != IGNORED] for e in (full, short)]
    assert torch.equal(*supervised)
    text = encoder.processor.tokenizer.decode(short.features["input_ids"][0])
    question = talk((1, 100, 4)).turns[0].texts[0]
    assert question[:20] in text and question[-20:] in text and " ... " in text


def test_truncated_answer_has_no_supervised_end_token():
    encoder, full = encode("qwen2_vl", talk((1, 4, 100)))
    _, short = encode("qwen2_vl", talk((1, 4, 100)), full.length - 200)
    assert short.length == full.length - 200
    assert torch.equal(short.features["input_ids"], full.features["input_ids"][:, : short.length])
    assert (short.features["labels"] != eos(encoder)).all() and (full.features["labels"] == eos(encoder)).any()


def test_drop_and_error_name_the_row_its_length_and_the_limit():
    row = talk((1, 4, 4))
    with pytest.raises(BadRowError, match=r"too_long: the-row: \d+ tokens, max_length is 50"):
        encode("llava", row, 50, "drop")
    with pytest.raises(TooLongError, match="raise max_length, or set on_too_long") as error:
        encode("llava", row, 50, "error")
    assert not isinstance(error.value, BadRowError)  # it ends the run, and is not skipped as a bad row


def test_images_larger_than_the_limit_drop_the_row_whatever_the_policy():
    with pytest.raises(BadRowError, match="its images and markup alone leave no room"):
        encode("llava", talk((2, 4, 4)), 100)


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="on_too_long: got 'cut', expected one of drop, error, truncate_text"):
        Encoder(FAMILIES["llava"].processor(), 10, "cut")
