"""`data.turns: apart`: one row for each answer, which trains on what a prefill of that turn keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, FastV, Reducer, attach
from dart_train.config import load_recipe
from dart_train.data.dataset import RowDataset, RowReader, SkippedRow
from dart_train.data.encoder import Encoded, Encoder
from dart_train.data.sources import SourceSpec, open_sources
from dart_train.data.survey import row_lengths
from dart_train.models.prompts import build_inputs
from dart_train.reduction import Learned
from tests.fixtures.run_scene import make_recipe
from tests.laws.cases import model_of
from tests.zoo import FAMILIES, make_image, sentence

ANSWERS = (3, 1, 2)  # of each conversation
PROCESSOR = FAMILIES["llava"].processor()


def write(folder: Path, others: dict[int, str] | None = None) -> Path:
    """Conversations of 3, 1 and 2 answers. The last one has its second image in its second turn. others: words in place
    of an answer of the first conversation."""
    rows = []
    for number, answers in enumerate(ANSWERS):
        turns = []
        for turn in range(answers):
            image = "<image>\n" if turn == 0 or number == 2 else ""
            answer = (others or {}).get(turn) if number == 0 else None
            turns.append({"from": "human", "value": image + sentence(4 + turn, 10 * number + turn)})
            turns.append({"from": "gpt", "value": answer or sentence(2, 100 + 10 * number + turn)})
        names = [f"{number}-{i}.png" for i in range(2 if number == 2 else 1)]
        for i, name in enumerate(names):
            make_image(10 * number + i).save(folder / name)
        rows.append({"id": f"row-{number}", "image": names, "conversations": turns})
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    return file


def dataset(file: Path, turns: Any = "apart", **options: Any) -> RowDataset:
    sources = open_sources([SourceSpec(str(file), str(file.parent))], turns=turns)
    return RowDataset(RowReader(sources, Encoder(PROCESSOR, **options)))


def answers_of(encoded: Encoded | SkippedRow) -> list[str]:
    """Each supervised stretch, decoded."""
    assert isinstance(encoded, Encoded)
    labels = encoded.features["labels"][0]
    ends = (labels == -100).nonzero().flatten().tolist()
    stretches = [labels[a + 1 : b] for a, b in zip([-1, *ends], [*ends, len(labels)], strict=True) if b - a > 1]
    return [PROCESSOR.tokenizer.decode(part, skip_special_tokens=True).strip() for part in stretches]


def kept(encoded: Any, reducer: Reducer) -> Tensor:
    """[L] bool: kept visual tokens."""
    model, batch = model_of("llava"), dict(encoded)
    with torch.no_grad(), attach(model, reducer) as attached:
        model(**batch, use_cache=False)
    assert attached.last is not None
    return attached.last.kept_visual[0]


def test_each_answer_is_a_row_and_supervised_once(tmp_path: Path) -> None:
    file = write(tmp_path)
    apart, together = dataset(file), dataset(file, "together")
    assert len(apart) == sum(ANSWERS) and len(together) == len(ANSWERS)
    found = [answers_of(apart[i]) for i in range(len(apart))]
    assert all(len(answers) == 1 for answers in found)
    assert [answer for answers in found for answer in answers] == [
        answer for i in range(len(together)) for answer in answers_of(together[i])
    ]


def test_turns_before_an_answer_are_its_prompt(tmp_path: Path) -> None:
    file = write(tmp_path)
    apart, together = dataset(file), dataset(file, "together")
    long: Any = together[0]
    for turn in range(ANSWERS[0]):
        row: Any = apart[turn]
        ids = row.features["input_ids"][0]
        assert torch.equal(ids, long.features["input_ids"][0, : len(ids)])


@pytest.mark.parametrize("reducer", [DART(keep=8), FastV(keep=8), Learned(keep=8)])
@pytest.mark.parametrize("conversation", [0, 2])
def test_a_row_keeps_what_a_prefill_of_its_turn_keeps(tmp_path: Path, conversation: int, reducer: Reducer) -> None:
    apart = dataset(write(tmp_path))
    source, first = apart.reader.sources[0], sum(ANSWERS[:conversation])
    for turn in range(ANSWERS[conversation]):
        row: Any = apart[first + turn]
        sample = source.sample(source.rows[first + turn], first + turn)
        images = iter([source.store.open(ref) for ref in sample.images])
        messages = [
            {
                **m,
                "content": [
                    p if p["type"] == "text" else {"type": "image", "image": next(images)} for p in m["content"]
                ],
            }
            for m in sample.messages()[:-1]
        ]
        prompt = build_inputs(PROCESSOR, [messages])
        in_prefill, in_training = kept(prompt, reducer), kept(row.features, reducer)
        assert torch.equal(in_training[: len(in_prefill)], in_prefill) and not in_training[len(in_prefill) :].any()


def test_no_answer_influences_the_choice_for_its_own_turn(tmp_path: Path) -> None:
    for turn in range(ANSWERS[0]):
        (tmp_path / f"{turn}").mkdir()
        rows = [dataset(write(tmp_path, {turn: words}))[turn] for words in (sentence(2, 500), sentence(2, 700))]
        masks = [kept(row.features, Learned(keep=8)) for row in rows if isinstance(row, Encoded)]
        assert answers_of(rows[0]) != answers_of(rows[1])
        assert torch.equal(*masks)


def test_messages_name_the_row_and_its_answer(tmp_path: Path) -> None:
    source = dataset(write(tmp_path)).reader.sources[0]
    assert [source.row_id(index) for index in (0, 2, 3)] == [
        "rows.json:0, answer 0", "rows.json:0, answer 2", "rows.json:1, answer 0",
    ]  # fmt: skip


def test_a_row_that_cannot_be_used_stays_one_row(tmp_path: Path) -> None:
    file = write(tmp_path)
    rows = json.loads(file.read_text())
    rows[0]["conversations"] = []
    file.write_text(json.dumps(rows))
    apart = dataset(file)
    assert len(apart) == 1 + sum(ANSWERS[1:])
    assert isinstance(apart[0], SkippedRow)


def test_no_answer_is_cut_to_shorten_a_row(tmp_path: Path) -> None:
    """Together, later exchanges are removed first. Apart, another answer would be supervised."""
    file = write(tmp_path)
    whole: Any = dataset(file)[2]
    cut: Any = dataset(file, max_length=whole.length - 3, on_too_long="truncate_text")[2]
    if isinstance(cut, Encoded):
        assert answers_of(whole)[0].startswith(answers_of(cut)[0])
    else:
        assert cut.code == "too_long"


def test_lengths_are_those_of_the_rows(tmp_path: Path) -> None:
    apart = dataset(write(tmp_path))
    found = row_lengths(apart.reader.sources, apart.reader.encoder, workers=1)
    assert found.tolist() == [apart[i].length for i in range(len(apart))]


def test_streamed_rows_are_refused(tmp_path: Path) -> None:
    recipe, source = make_recipe(tmp_path), f"data.train=[{{path: {write(tmp_path)}, streaming: true}}]"
    with pytest.raises(ValueError, match=r"data\.turns"):
        load_recipe(recipe, [source, "data.turns=apart"])
