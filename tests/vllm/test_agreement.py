"""vLLM with the plug-in answers as this project's own forward: the same greedy text, the same log-probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from dart_train import DART, Reducer
from dart_train.exporting.engine_names import rename_for_engines
from tests.vllm.conftest import ROOT, Engine, Expected, Processed, assert_same, save_served
from tests.vllm.scenes import SHAPE_QUESTIONS, draw
from tests.zoo.folders import save_folder
from tests.zoo.models import CONFIGS

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TINY_BASE = ROOT / "data/tiny_base"
KEEP_40 = DART(keep=40, layer=0, text_pivots=0, per="image")
MERGED = DART(keep=40, layer=0, text_pivots=0, per="image", pivot="key_min", merge="nearest")
QUARTER = DART(keep=0.25, layer=0, text_pivots=0, per="image")
CHUNKS = {"max_num_batched_tokens": 20, "max_num_seqs": 4}
BLOCK = 32  # tokens that a cached prefix is a multiple of: the smallest on a CPU
SMALL_BLOCKS = {"block_size": BLOCK}


@pytest.fixture(scope="module")
def tiny() -> Expected:
    return Expected(TINY_BASE)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw(tmp_path_factory.mktemp("images"), [(96, 96), (120, 96), (96, 130), (96, 96)])


def llava_requests(tiny: Expected, images: list[Path], **more: object) -> list[dict[str, object]]:
    single = [tiny.request(q, [image], **more) for q, image in zip(SHAPE_QUESTIONS, images, strict=False)]
    return [*single, tiny.request(SHAPE_QUESTIONS[1], images[2:4], **more)]


def test_full_tokens(engine: Engine, tiny: Expected, images: list[Path], tmp_path: Path) -> None:
    folder = save_served(TINY_BASE, tmp_path / "served", [KEEP_40])
    requests = llava_requests(tiny, images)
    found = engine(folder, [requests], hf_overrides={"dart_reducer": "none"})
    assert_same(found["rounds"][0], tiny.answers(requests))


@pytest.mark.parametrize(
    ("reducer", "chunks"),
    [(KEEP_40, {}), (KEEP_40, CHUNKS), (MERGED, CHUNKS)],
    ids=["at_once", "in_chunks", "merged"],
)
def test_llava(
    reducer: Reducer, chunks: dict[str, int], engine: Engine, tiny: Expected, images: list[Path], tmp_path: Path
) -> None:
    """One and two images, and a prefix that is found in the cache and ends inside an image."""
    folder = save_served(TINY_BASE, tmp_path / "served", [reducer])
    requests = llava_requests(tiny, images)
    other_questions = [tiny.request(question, [images[0]]) for question in SHAPE_QUESTIONS[1:]]
    found = engine(folder, [requests, other_questions], **chunks, **SMALL_BLOCKS)["rounds"]
    expected = tiny.answers(requests, reducer)
    assert_same(found[0], expected)
    assert_same(found[1], tiny.answers(other_questions, reducer))
    assert [answer["cached_tokens"] for answer in found[1]] == [
        BLOCK,
        BLOCK,
    ]  # inside the image: it begins at the third token
    dropped = [(144 - 40) * len(request["images"]) for request in requests]
    lengths = [answer["length"] - fewer for answer, fewer in zip(expected, dropped, strict=True)]
    assert [answer["prompt_tokens"] for answer in found[0]] == lengths


def test_budget_of_a_request(engine: Engine, tiny: Expected, images: list[Path], tmp_path: Path) -> None:
    """The same image at several budgets, one after the other: none is answered from another one's cache."""
    folder = save_served(TINY_BASE, tmp_path / "served", [KEEP_40])
    budgets: list[int | float | None] = [None, 16, 0.5, 40, 1.0, 16]
    requests = [
        tiny.request(SHAPE_QUESTIONS[0], [images[0]], **({} if keep is None else {"budget": keep})) for keep in budgets
    ]
    found = engine(folder, [[request] for request in requests], hf_overrides={"dart_untrained": True}, **SMALL_BLOCKS)
    for keep, request, [answer] in zip(budgets, requests, found["rounds"], strict=True):
        reducer = DART(**{**vars(KEEP_40), **({} if keep is None else {"keep": keep})})
        assert_same([answer], tiny.answers([request], reducer))


SIZES = [(32, 32), (64, 40), (40, 64), (56, 56)]
QUESTIONS = ("What is this?", "Which one is left?", "How many?")


def with_wide_heads(family: str) -> PreTrainedConfig:
    """vLLM's attention on CPUs needs heads of a multiple of 32."""
    config = CONFIGS[family](family)
    text = config.text_config
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 2, 1, 32
    if sections := text.rope_parameters.get("mrope_section"):
        text.rope_parameters["mrope_section"] = [2 * each for each in sections]
    if family == "qwen3_vl":
        text.rope_parameters["mrope_interleaved"] = True  # in published configs; transformers takes it for granted
    return config


def save_base(family: str, folder: Path) -> Path:
    save_folder(family, folder, config=with_wide_heads(family))
    rename_for_engines(folder)
    return folder


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "llava_next"])
def test_other_families(family: str, engine: Engine, processed: Processed, tmp_path: Path) -> None:
    """A quarter of each image's tokens, images of several sizes, two images, small chunks, and a prefix that is found
    in the cache and ends inside an image."""
    base = save_base(family, tmp_path / "base")
    folder = save_served(base, tmp_path / "served", [QUARTER])
    expected = Expected(base)
    images = draw(tmp_path / "images", SIZES)
    requests = [expected.request(question, [image]) for question, image in zip(QUESTIONS, images, strict=False)]
    requests.append(expected.request(QUESTIONS[0], images[2:4]))
    before = expected.tokens_before_image(images[1], system="")
    system = "s" * (BLOCK - 4 - before)  # the image, of which 10 tokens or more stay, is across the end of a block
    requests.append(expected.request(QUESTIONS[0], [images[1]], system=system))
    again = [expected.request(QUESTIONS[1], [images[1]], system=system)]
    video = [expected.request(QUESTIONS[0], frames=images[:1] * 2)] if family == "qwen3_vl" else []
    rounds = [requests, again, video] if video else [requests, again]
    found = engine(folder, rounds, **CHUNKS, **SMALL_BLOCKS)["rounds"]
    if video:  # refused by itself; the engine continues
        assert "the reduction is not defined for video inputs" in found[2][0]["error"]
    answers = expected.answers([*requests, *again], QUARTER, inputs=processed(base, [*requests, *again]))
    assert_same([*found[0], *found[1]], answers)
    assert found[1][0]["cached_tokens"] == BLOCK


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_video(family: str, engine: Engine, processed: Processed, tmp_path: Path) -> None:
    base = save_base(family, tmp_path / "base")
    folder = save_served(base, tmp_path / "served", [QUARTER])
    expected = Expected(base)
    frames = draw(tmp_path / "frames", [(48, 40)] * 4)
    [image] = draw(tmp_path / "images", [(56, 40)], seed=1)
    requests = [expected.request(QUESTIONS[0], frames=frames), expected.request(QUESTIONS[1], [image], frames)]
    found = engine(folder, [requests], **CHUNKS)["rounds"][0]
    assert_same(found, expected.answers(requests, QUARTER, inputs=processed(base, requests)))
