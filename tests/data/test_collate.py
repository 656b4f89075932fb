"""A batch collated from encoded rows is the batch that the family's processor makes of the same rows."""

import pytest
import torch

from dart_train.data.collator import Collator
from dart_train.data.dataset import SkippedRow
from dart_train.data.encoder import Encoder
from dart_train.data.formats import normalise
from dart_train.data.supervision import IGNORED
from tests.zoo import FAMILIES, make_image

MIXES = {"one": (1,), "ragged": (1, 2, 0), "text first": (0, 1), "text only": (0, 0), "many": (2, 1, 2)}


def rows_of(counts):
    """(sample, its images), of different sizes, texts of different lengths."""
    rows = []
    for row, count in enumerate(counts):
        question = "<image>" * count + "What is it?" + " really?" * row
        sample = normalise({"question": question, "answer": "Yes." * (row + 1), "images": ["a.png"] * count})
        rows.append((sample, [make_image(10 * row + i) for i in range(count)]))
    return rows


@pytest.mark.parametrize("counts", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("name", FAMILIES)
def test_collated_batch_equals_the_batch_of_the_processor(name, counts):
    processor = FAMILIES[name].processor()
    encoder, rows = Encoder(processor), rows_of(counts)
    batch = Collator(processor)([encoder.encode(*row) for row in rows])
    labels = batch.pop("labels")
    texts = [encoder.template.answers(sample.messages())[0] for sample, _ in rows]
    images = [each for _, each in rows] if any(counts) else None
    special = not texts[0].startswith(processor.tokenizer.bos_token or "\0")
    own = processor(
        text=texts, images=images, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=special
    )
    assert batch.keys() == own.keys()
    for key, value in own.items():
        assert torch.equal(batch[key], value), key
    assert ((labels == IGNORED) | (labels == batch["input_ids"])).all()
    assert (labels[batch["attention_mask"] == 0] == IGNORED).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_collated_batch_runs_forward_and_backward(name):
    encoder = Encoder(FAMILIES[name].processor())
    model = FAMILIES[name].model()
    batch = Collator(encoder.processor)([encoder.encode(*row) for row in rows_of((2, 0, 1))])
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss) and loss > 0


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "idefics3"])
def test_padding_to_a_multiple(name):
    encoder = Encoder(FAMILIES[name].processor())
    encoded = [encoder.encode(*row) for row in rows_of((1, 0))]
    plain, padded = (Collator(encoder.processor, multiple)(encoded) for multiple in (None, 64))
    length = plain["input_ids"].shape[1]
    assert padded["input_ids"].shape[1] == -(-length // 64) * 64 > length
    for key, value in padded.items():
        same = value[:, :length] if value.shape == padded["input_ids"].shape else value
        assert torch.equal(same, plain[key])
        if value.shape == padded["input_ids"].shape:
            empty = {"input_ids": encoder.processor.tokenizer.pad_token_id, "labels": IGNORED}.get(key, 0)
            assert (value[:, length:] == empty).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_skipped_rows_are_not_in_the_batch(name):
    encoder = Encoder(FAMILIES[name].processor())
    collate, good = Collator(encoder.processor), [encoder.encode(*row) for row in rows_of((1, 2))]
    bad = SkippedRow("row-7", "missing_image")
    plain, with_gaps = collate(good), collate([bad, good[0], bad, good[1]])
    assert plain.keys() == with_gaps.keys()
    assert all(torch.equal(plain[key], with_gaps[key]) for key in plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_of_bad_rows_runs_with_zero_loss(name):
    batch = Collator(FAMILIES[name].processor())([SkippedRow("row-7", "missing_image")])
    assert (batch["labels"] == IGNORED).all() and len(batch["input_ids"]) == 1
    labels = batch.pop("labels")
    logits = FAMILIES[name].model()(**batch).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    assert loss == 0
