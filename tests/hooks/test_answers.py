"""Answers never choose: in every way to train, the kept tokens are those that a prefill of the prompt keeps."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from dart_train import DART, FastV, Learned, attach
from dart_train.hooks import Attached
from dart_train.hooks.answers import AnswerMarks
from tests.zoo import FAMILIES, conversation, encode, sentence

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # trl asks transformers by an old name
    pytest.mark.filterwarnings("error:.*answers may influence.*", "error:.*labels supervise.*"),
]
ROWS = 24
TRL_FAMILY = "qwen2_5_vl"  # TRL writes no beginning-of-sequence token where the template does not
METHODS = (DART(keep=0.4), FastV(keep=0.4))
Batch = dict[str, Any]


def messages_of(row: int, answer: bool = True) -> list[dict[str, Any]]:
    return conversation(1, sentence(3 + row % 5, row), sentence(2 + row % 4, 50 + row) if answer else None, row)[0]


def prompt_and_answer(family: str, rows: range, side: str = "left") -> Batch:
    return encode(family, [messages_of(row) for row in rows], side, labels=True)


def choices(attached: Attached) -> list[list[bool]]:
    """Of each row of the last forward: which of its visual tokens were kept."""
    kept = attached.last
    assert kept is not None
    pairs = zip(kept.kept_visual, kept.visual, strict=True)
    return [mine[visual].tolist() for mine, visual in pairs]


def prefill_choices(family: str, reducer: Any, rows: range = range(ROWS)) -> list[list[bool]]:
    model = FAMILIES[family].model()
    found = []
    with torch.no_grad(), attach(model, reducer) as attached:
        for row in rows:
            model(**encode(family, [messages_of(row, answer=False)]))
            found += choices(attached)
    return found


def collate(rows: list[Batch]) -> Batch:
    return prompt_and_answer("llava", range(rows[0]["row"], rows[-1]["row"] + 1), "right")


def options(folder: Path, **more: Any) -> Batch:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "remove_unused_columns": False,
        **more,
    }


def plain_trainer(folder: Path, model: Any, attached: Attached, wrap: bool, **more: Any) -> Trainer:
    loss = more.pop("compute_loss_func", None)
    rows = Dataset.from_list([{"row": row} for row in range(ROWS)])
    return Trainer(
        model,
        TrainingArguments(**options(folder, **more)),
        data_collator=attached.collate(collate) if wrap else collate,
        train_dataset=rows,
        compute_loss_func=loss,
    )


@contextmanager
def recorded(model: nn.Module, attached: Attached) -> Iterator[list[list[bool]]]:
    """The choices of every forward inside."""
    found: list[list[bool]] = []
    handle = model.register_forward_hook(lambda *args: found.extend(choices(attached)))
    try:
        yield found
    finally:
        handle.remove()


def losses_of(trainer: Any, model: nn.Module, attached: Attached) -> list[list[bool]]:
    """The choices in one epoch of the trainer's own batches, in its own loss, in order of the rows."""
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(trainer.train_dataset)
    model.train()
    with torch.no_grad(), recorded(model, attached) as found:
        for inputs in trainer.get_train_dataloader():
            trainer.compute_loss(model, trainer._prepare_inputs(inputs))
    return found


def own_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    loss: Tensor = nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return loss


@pytest.mark.parametrize("reducer", METHODS, ids=lambda r: r.name)
@pytest.mark.parametrize(
    ("setting", "wrap"),
    [({}, False), ({"label_smoothing_factor": 0.1}, True), ({"compute_loss_func": own_loss}, True)],
    ids=["plain", "label smoothing", "compute_loss_func"],
)
def test_trainer_keeps_what_a_prefill_keeps(tmp_path: Path, setting: Batch, wrap: bool, reducer: Any) -> None:
    model = FAMILIES["llava"].model()
    attached = attach(model, reducer)
    trainer = plain_trainer(tmp_path, model, attached, wrap, **setting)
    assert losses_of(trainer, model, attached) == prefill_choices("llava", reducer)


@pytest.mark.parametrize("reducer", METHODS, ids=lambda r: r.name)
def test_without_the_collator_answers_choose(tmp_path: Path, reducer: Any) -> None:
    """Else the tests here could not fail."""
    model = FAMILIES["llava"].model()
    attached = attach(model, reducer)
    trainer = plain_trainer(tmp_path, model, attached, wrap=False, label_smoothing_factor=0.1)
    with pytest.warns(UserWarning, match="answers may influence"):
        found = losses_of(trainer, model, attached)
    assert sum(map(list.__eq__, found, prefill_choices("llava", reducer))) < ROWS / 4


@pytest.mark.parametrize("reducer", METHODS, ids=lambda r: r.name)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("source", ["prompt_lengths", "answer_mask", "prefetched", "processor", "logits_to_keep"])
def test_a_loss_outside_the_model_keeps_what_a_prefill_keeps(source: str, side: str, reducer: Any) -> None:
    model, processor = FAMILIES["llava"].model().train(), FAMILIES["llava"].processor()
    batch = prompt_and_answer("llava", range(ROWS), side)
    labels, real = batch.pop("labels"), batch["attention_mask"].bool()
    lengths = (real & ((labels != -100).cumsum(1) == 0)).sum(1)
    with torch.no_grad(), attach(model, reducer, processor=processor if source == "processor" else None) as attached:
        if source == "prefetched":
            attached.prefetch_batch(batch["input_ids"], batch["attention_mask"], prompt_lengths=lengths)
        if source == "logits_to_keep":  # prompts padded on the left and completions on the right, as in TRL
            for row in range(ROWS):
                one = prompt_and_answer("llava", range(row, row + 1))
                number = int((one.pop("labels") != -100).sum())
                model(**one, logits_to_keep=number + 1)
                assert choices(attached) == prefill_choices("llava", reducer, range(row, row + 1))
            return
        given = {"prompt_lengths": lengths, "answer_mask": (labels != -100).long()}
        model(**batch, **{name: given[name] for name in given if name == source})
        assert choices(attached) == prefill_choices("llava", reducer)


def sft_rows(kind: str) -> Dataset:
    made = []
    for row in range(ROWS):
        turns = [
            {"role": t["role"], "content": [{"type": p["type"], "text": p.get("text")} for p in t["content"]]}
            for t in messages_of(row)
        ]
        images = [part["image"] for part in messages_of(row)[0]["content"] if part["type"] == "image"]
        columns = {"messages": turns} if kind == "messages" else {"prompt": turns[:1], "completion": turns[1:]}
        made.append({**columns, "images": images})
    return Dataset.from_list(made)


@pytest.mark.parametrize("reducer", METHODS, ids=lambda r: r.name)
@pytest.mark.parametrize(
    ("kind", "setting"),
    [("messages", {}), ("messages", {"assistant_only_loss": True}), ("prompts", {"completion_only_loss": True})],
    ids=["default", "assistant_only_loss", "completion_only_loss"],
)
def test_trl_sft_keeps_what_a_prefill_keeps(tmp_path: Path, kind: str, setting: Batch, reducer: Any) -> None:
    model, processor = FAMILIES[TRL_FAMILY].model(), FAMILIES[TRL_FAMILY].processor()
    attached = attach(model, reducer, processor=processor)
    config = SFTConfig(**options(tmp_path, **setting), max_length=None)
    trainer = SFTTrainer(model, config, train_dataset=sft_rows(kind), processing_class=processor)
    assert losses_of(trainer, model, attached) == prefill_choices(TRL_FAMILY, reducer)


@pytest.mark.parametrize("reducer", METHODS, ids=lambda r: r.name)
def test_trl_dpo_keeps_what_a_prefill_keeps(tmp_path: Path, reducer: Any) -> None:
    model, processor = FAMILIES[TRL_FAMILY].model(), FAMILIES[TRL_FAMILY].processor()
    attached = attach(model, reducer)
    rows = sft_rows("prompts").rename_column("completion", "chosen")
    rows = rows.add_column("rejected", [[{"role": "assistant", "content": [{"type": "text", "text": "no"}]}]] * ROWS)
    config = DPOConfig(**options(tmp_path, per_device_train_batch_size=ROWS), max_length=None)
    trainer = DPOTrainer(model, FAMILIES[TRL_FAMILY].model(), config, train_dataset=rows, processing_class=processor)
    found = losses_of(trainer, model, attached)
    expected = prefill_choices(TRL_FAMILY, reducer)
    assert len(found) >= 2 * ROWS and found == expected * (len(found) // ROWS)


def grpo_inputs(rows: range) -> tuple[Batch, int]:
    """As GRPOTrainer calls the model: prompts padded on the left, completions on the right, labels in completions."""
    prompts = encode("llava", [messages_of(row, answer=False) for row in rows], "left")
    completion = torch.randint(20, 60, (len(rows), 6))
    ids = torch.cat([prompts["input_ids"], completion], 1)
    mask = torch.cat([prompts["attention_mask"], torch.ones_like(completion)], 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-6] = -100
    return {**prompts, "input_ids": ids, "attention_mask": mask, "labels": labels}, 6


@pytest.mark.parametrize("reducer", METHODS, ids=lambda r: r.name)
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "logits_to_keep"])
def test_trl_grpo_keeps_what_a_prefill_keeps(labels: bool, reducer: Any) -> None:
    """Today's releases give labels; former ones gave logits_to_keep."""
    model = FAMILIES["llava"].model().train()
    batch, number = grpo_inputs(range(ROWS))
    if not labels:
        del batch["labels"]
        batch["logits_to_keep"] = number + 1
    with torch.no_grad(), attach(model, reducer) as attached:
        model(**batch)
        assert choices(attached) == prefill_choices("llava", reducer)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_chat_template_marks_the_answers_of_every_family(family: str) -> None:
    """Also of several turns: exactly where a prompt ends."""
    marks = AnswerMarks.of(FAMILIES[family].processor())
    assert marks is not None
    first, _ = conversation(1, sentence(4, 1), sentence(3, 2), 1)
    second, _ = conversation(0, sentence(2, 3), sentence(3, 4), 1)
    turns = [first, [*first, *second]]
    prompt = encode(family, [first[:1]])["input_ids"].shape[1]
    for number, messages in enumerate(turns, 1):
        batch = encode(family, [messages], labels=True)
        ids, supervised = batch["input_ids"][0], batch["labels"][0] != -100
        found = marks.answers(ids, 0)
        assert found is not None
        assert int(found.nonzero()[0]) == prompt
        starts = found & ~torch.cat([found.new_zeros(1), found[:-1]])
        assert int(starts.sum()) == number
        assert int((found & ~supervised).sum()) <= 2 * number  # a blank, or what ends a turn


def whole_sequence(batch: Batch) -> Batch:
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def without_labels(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"}


@pytest.mark.parametrize(
    ("change", "names"),
    [(without_labels, "label_smoothing_factor or compute_loss_func"), (whole_sequence, "completion_only_loss")],
)
def test_unknown_answers_are_reported_once_and_refused_if_strict(change: Callable[[Batch], Batch], names: str) -> None:
    model, batch = FAMILIES["llava"].model().train(), change(prompt_and_answer("llava", range(2)))
    with attach(model, DART(keep=8)), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(**batch)
        model(**batch)
    mine = [str(each.message) for each in caught if "visual tokens" in str(each.message)]
    assert len(mine) == 1 and names in mine[0] and "attached.collate(collator)" in mine[0]
    with attach(model, DART(keep=8), strict=True), pytest.raises(ValueError, match=names):
        model(**batch)


def test_inference_without_labels_is_silent() -> None:
    model, batch = FAMILIES["llava"].model(), without_labels(prompt_and_answer("llava", range(2)))
    with torch.no_grad(), attach(model, DART(keep=8), strict=True) as attached, warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch)
    assert attached.last is not None


def test_the_collator_serves_workers_and_adds_nothing_that_is_wrong() -> None:
    model = FAMILIES["llava"].model()
    with attach(model, DART(keep=8)) as attached:
        wrapped = pickle.loads(pickle.dumps(attached.collate(collate)))
        batch = wrapped([{"row": 0}, {"row": 1}])
        assert torch.equal(batch["answer_mask"].bool(), batch["labels"] != -100)
        assert "answer_mask" not in attached.collate(lambda rows: whole_sequence(collate(rows)))([{"row": 0}])
        masks = attached.collate(lambda rows: {**whole_sequence(batch), "completion_mask": batch["answer_mask"]})
        assert torch.equal(masks([])["answer_mask"], batch["answer_mask"])


def test_wrong_shapes_are_refused() -> None:
    model, batch = FAMILIES["llava"].model(), prompt_and_answer("llava", range(2))
    with attach(model, DART(keep=8)):
        with pytest.raises(ValueError, match=r"prompt_lengths has shape \(3,\)"):
            model(**batch, prompt_lengths=torch.tensor([3, 4, 5]))
        with pytest.raises(ValueError, match=r"answer_mask has shape \(2, 3\)"):
            model(**batch, answer_mask=torch.ones(2, 3))


def test_scorers_learn_from_the_answers_without_labels() -> None:
    """Their targets are rows of attention of the answers, which need not be supervised."""
    batch, losses = prompt_and_answer("llava", range(3)), []
    model = FAMILIES["llava"].model().train()
    with attach(model, Learned(keep=1.0)) as attached, attached.with_scorer_loss():
        model(**batch)
        losses.append(attached.scorer_loss().item())
        answers = (batch["labels"] != -100).long()
        model(**without_labels(batch), answer_mask=answers)
        losses.append(attached.scorer_loss().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def two_turns(row: int) -> list[dict[str, Any]]:
    """An image in each turn."""
    return [*messages_of(row), *messages_of(row + 30)]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_marks_choose_as_labels_do_in_several_turns(family: str) -> None:
    model, processor = FAMILIES[family].model(), FAMILIES[family].processor()
    batch = encode(family, [two_turns(row) for row in range(4)], "right", labels=True)
    with torch.no_grad(), attach(model, DART(keep=0.4), processor=processor) as attached:
        model(**batch)
        by_labels = choices(attached)
        model(**whole_sequence(batch))
        assert choices(attached) == by_labels


def test_the_processor_is_found_where_the_model_was_loaded_from(tmp_path: Path) -> None:
    FAMILIES["llava"].model().save_pretrained(tmp_path)
    FAMILIES["llava"].processor().save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path).train()
    batch = prompt_and_answer("llava", range(4))
    with torch.no_grad(), attach(model, DART(keep=0.4), strict=True) as attached:
        model(**batch)
        by_labels = choices(attached)
        model(**without_labels(batch))
        assert choices(attached) == by_labels
