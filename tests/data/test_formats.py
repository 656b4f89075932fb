"""Every supported format becomes the same `Sample`; any other row is a `BadRowError`."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_train.data.formats import detect, normalise
from dart_train.data.issues import CODES, BadRowError
from dart_train.data.sample import ImageRef, Sample, Turn, VideoRef

CAT = ImageRef(path="cat.png")
ASKED = (Turn("user", (CAT, "What is it?")), Turn("assistant", ("A cat.",)))
PNG = b"\x89PNG not really"

LLAVA = {
    "id": "1",
    "image": "cat.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
    ],
}
MESSAGES = {
    "messages": [
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": "A cat."},
    ],
    "images": ["cat.png"],
}
OPENAI = {
    "messages": [
        {"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
}
QUERY = {"image": "cat.png", "query": "What is it?", "response": "A cat."}
ALPACA = {"images": ["cat.png"], "instruction": "What is it?", "input": "", "output": "A cat."}
FLAT = {"image": "cat.png", "question": "What is it?", "answer": ["A cat.", "A pet."]}


@pytest.mark.parametrize(
    "name, row",
    [("llava", LLAVA), ("messages", MESSAGES), ("openai", OPENAI), ("qa", FLAT), ("query", QUERY), ("alpaca", ALPACA)],
    ids=lambda v: str(v)[:6],
)
def test_every_format_is_detected_and_gives_the_same_sample(name, row):
    assert detect(row) == name
    assert normalise(row).turns == normalise(json.dumps(row)).turns == normalise(row, format=name).turns == ASKED


def test_row_id_comes_from_the_row_or_its_position():
    assert normalise(LLAVA, row_id="file:7").id == "1"
    assert normalise({**LLAVA, "id": 12}).id == "12"
    assert normalise(MESSAGES, row_id="file:7").id == "file:7"


def with_image(value):
    part = value if isinstance(value, dict) else {"type": "image", "image": value}
    return normalise({"messages": [{"role": "user", "content": [part, "?"]}, {"role": "assistant", "content": "!"}]})


@pytest.mark.parametrize(
    "value, expected",
    [
        ("a/b.png", ImageRef(path="a/b.png")),
        ("file://a/b.png", ImageRef(path="a/b.png")),
        (PNG, ImageRef(data=PNG)),
        ({"type": "image", "image": {"bytes": PNG, "path": "x.png"}}, ImageRef(data=PNG)),
        ({"type": "image", "image": {"bytes": None, "path": "x.png"}}, ImageRef(path="x.png")),
        ({"type": "image", "base64": base64.b64encode(PNG).decode()}, ImageRef(data=PNG)),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()}},
         ImageRef(data=PNG)),
        ({"type": "image_url", "image_url": {"url": "https://host/a.png"}}, ImageRef(url="https://host/a.png")),
        ({"type": "input_image", "image_url": "HTTP://host/a.png"}, ImageRef(url="HTTP://host/a.png")),
        ({"type": "image", "image": None, "text": None, "path": "x.png"}, ImageRef(path="x.png")),
    ],
    ids=range(10),
)  # fmt: skip
def test_forms_of_an_image(value, expected):
    assert with_image(value).images == [expected]


def test_several_images_interleave_with_text_over_several_turns():
    sample = normalise(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Left: <image> right:\n<image>\nSame?"},
                {"role": "assistant", "content": "No."},
                {"role": "user", "content": [{"type": "text", "text": "And"}, {"type": "image"}, "?"]},
                {"role": "assistant", "content": "Yes."},
            ],
            "images": ["a.png", "b.png", "c.png"],
        }
    )
    a, b, c = (ImageRef(path=f"{name}.png") for name in "abc")
    assert [turn.parts for turn in sample.turns] == [
        ("Be brief.",), ("Left: ", a, " right:", b, "Same?"), ("No.",), ("And", c, "?"), ("Yes.",),
    ]  # fmt: skip
    assert sample.images == [a, b, c]
    assert [part["type"] for part in sample.messages()[1]["content"]] == ["text", "image", "text", "image", "text"]


def test_row_without_images_is_text_only():
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}], "image": ""}
    assert normalise(row).images == []


def test_columns_are_renamed():
    row = {"photo": "cat.png", "query": "What is it?", "label": "A cat.", "key": "k1"}
    columns = {"image": "photo", "question": "query", "answer": "label", "id": "key"}
    assert normalise(row, columns) == Sample("k1", ASKED)
    with pytest.raises(BadRowError, match="columns names nope"):
        normalise(row, {"image": "nope"})


def test_tar_row_has_its_image_bytes():
    row = {"__key__": "000", "__url__": "x.tar", "jpg": {"bytes": PNG, "path": "000.jpg"}, "json": LLAVA}
    sample = normalise(row)
    assert sample.id == "1" and sample.images == [ImageRef(data=PNG)]


def talk(*turns, weights=()):
    made = [{"from": role, "value": value} for role, value in turns]
    for turn, weight in zip(made, weights, strict=False):
        turn["weight"] = weight
    return {"conversations": made}


@pytest.mark.parametrize(
    "code, row",
    [
        ("bad_json", '{"conversations": ['),
        ("bad_json", "[" * 100_000),
        ("bad_type", "[1, 2]"),
        ("bad_type", None),
        ("unknown_format", {"text": "hi"}),
        ("unknown_role", talk(("robot", "hi"))),
        ("unknown_role", talk(({"a": 1}, "hi"))),
        ("empty_turn", talk(("human", "hi"), ("gpt", " "))),
        ("empty_turn", talk(("human", None), ("gpt", "ho"))),
        ("empty_conversation", talk()),
        ("empty_conversation", {**talk(), "image": "a.png"}),
        ("role_order", talk(("gpt", "hi"), ("human", "ho"))),
        ("role_order", talk(("human", "hi"), ("gpt", "ho"), ("human", "hi"))),
        ("role_order", talk(("human", "hi"), ("system", "ho"))),
        ("mark_mismatch", talk(("human", "<image>hi"), ("gpt", "ho"))),
        ("mark_mismatch", {**talk(("human", "hi"), ("gpt", "ho")), "image": "a.png"}),
        ("mark_mismatch", {**LLAVA, "image": ["a.png", "b.png"]}),
        ("bad_type", {**LLAVA, "image": 3}),
        ("bad_text", talk(("human", "hi \ud800"), ("gpt", "ho"))),
        ("unsupported_media", {**LLAVA, "audio": "a.wav"}),
        ("unsupported_media", {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]}),
        ("mark_mismatch", {**LLAVA, "video": "a.mp4"}),
        ("bad_type", {**LLAVA, "image": None, "video": [[]]}),
        ("bad_type", {**LLAVA, "image": None, "video": "a.mp4", "fps": "fast"}),
        ("bad_weight", talk(("human", "hi"), ("gpt", "ho"), weights=(1, 1))),
        ("bad_weight", talk(("human", "hi"), ("gpt", "ho"), weights=(0, -1))),
        ("bad_weight", talk(("human", "hi"), ("gpt", "ho"), weights=(0, float("nan")))),
        ("role_order", {**talk(("system", "Be brief."), ("human", "hi"), ("gpt", "ho")), "system": "Be kind."}),
        ("role_order", talk(("human", "hi"), ("observation", "3"), ("gpt", "ho"))),
        ("role_order", talk(("human", "hi"), ("gpt", "ho"), ("gpt", "ho"))),
        ("bad_tool_call", talk(("human", "hi"), ("function_call", "now"), ("observation", "3"), ("gpt", "ho"))),
        ("bad_tool_call", talk(("human", "hi"), ("function_call", "[3]"), ("observation", "3"), ("gpt", "ho"))),
        ("bad_tool_call", {**talk(("human", "hi"), ("gpt", "ho")), "tools": "weather"}),
        ("bad_type", {"query": "hi", "response": "ho", "history": ["hi", "ho"]}),
        ("unknown_format", {"instruction": "hi"}),
        ("bad_base64", {**LLAVA, "image": "data:image/png;base64,####"}),
        ("bad_type", {"question": {"a": 1}, "answer": "b"}),
    ],
)
def test_each_fault_has_its_code(code, row):
    with pytest.raises(BadRowError) as error:
        normalise(row)
    assert error.value.code == code and len(str(error.value)) < 400


def test_unknown_format_option_is_not_a_bad_row():
    with pytest.raises(ValueError, match="expected auto or one of llava, messages, openai, qa, query, alpaca") as error:
        normalise(LLAVA, format="csv")
    assert not isinstance(error.value, BadRowError)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=20),
    st.sampled_from(["<image>", "<image>\n", "user", "gpt", "text", "image", "a.png", "http://x", "data:;base64,"]),
)  # fmt: skip
KEYS = st.sampled_from([
    "id", "image", "images", "conversations", "messages", "from", "value", "role", "content", "type", "text", "url",
    "path", "bytes", "base64", "image_url", "question", "answer", "system", "json", "__key__", "jpg", "video",
    "videos", "fps", "frames", "weight", "tools", "tool_calls", "query", "response", "history", "instruction", "output",
])  # fmt: skip
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=6)
)


def test_history_and_input_of_flat_rows():
    history = [["What is it?", "A cat."], ["Sure?", "Yes."]]
    sample = normalise({"image": "cat.png", "query": "Its colour?", "response": "Red.", "history": history})
    assert sample.turns == (
        *ASKED, Turn("user", ("Sure?",)), Turn("assistant", ("Yes.",)),
        Turn("user", ("Its colour?",)), Turn("assistant", ("Red.",)),
    )  # fmt: skip
    marked = normalise({"image": "cat.png", "instruction": "Add", "input": "to <image>", "output": 3, "system": "Be."})
    assert [turn.parts for turn in marked.turns] == [("Be.",), ("Add\nto ", CAT), ("3",)]


def test_tool_calls_of_both_notations_are_the_same_messages():
    call = {"name": "look", "arguments": {"at": "top"}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    sharegpt = talk(("human", "hi"), ("function_call", json.dumps(call)), ("observation", "3"), ("gpt", "ho"))
    openai = {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"type": "function", "function": {**call, "arguments": json.dumps(call["arguments"])}}
            ]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "ho"},
        ]
    }  # fmt: skip
    first, second = normalise({**sharegpt, "tools": json.dumps(tools)}), normalise({**openai, "tools": tools})
    assert first.messages() == second.messages() and first.tools == second.tools and json.loads(first.tools) == tools
    assert first.messages()[1]["tool_calls"] == [{"type": "function", "function": call}]
    assert first.digest() == second.digest() != normalise(sharegpt).digest()


def test_weights_of_turns():
    turns = (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))
    sample = normalise(talk(*turns, weights=(0, 0.25)))
    assert sample.weights == [0.25, 1.0] and sample.up_to_answer(1).weights == [0.0, 1.0]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": False}]
    assert normalise({"messages": messages}).weights == [0.0]


A, B = ImageRef(path="a.png"), ImageRef(path="b.png")


@pytest.mark.parametrize("row, expected", [
    ({"video": "clip.mp4"}, [VideoRef(source=ImageRef(path="clip.mp4"))]),
    ({"video": "clip.mp4", "fps": 2}, [VideoRef(source=ImageRef(path="clip.mp4"), fps=2.0)]),
    ({"video": ["a.png", "b.png"]}, [VideoRef(frames=(A, B))]),
    ({"videos": [["a.png", "b.png"]]}, [VideoRef(frames=(A, B))]),
    ({"videos": ["a.gif", "b"]}, [VideoRef(source=ImageRef(path="a.gif")), VideoRef(source=ImageRef(path="b"))]),
    ({"videos": [{"frames": ["a.png"], "fps": 1.5}]}, [VideoRef(frames=(A,), fps=1.5)]),
    ({"video": {"bytes": PNG, "path": "x.mp4"}}, [VideoRef(source=ImageRef(data=PNG))]),
])  # fmt: skip
def test_forms_of_a_video(row, expected):
    marks = "<video>" * len(expected)
    sample = normalise({**row, **talk(("human", marks + "\nWhat moves?"), ("gpt", "A."))})
    assert sample.videos == sample.media == expected and not sample.images
    if len(row) == 1 and "video" in row:
        parts = [{"type": "video", **row}, {"type": "text", "text": "What moves?"}]
        spelt = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A."}]}
        assert normalise(spelt).turns == sample.turns
        assert normalise({**row, **talk(("human", "<image>\nWhat moves?"), ("gpt", "A."))}).turns == sample.turns


def test_images_and_videos_interleave():
    row = {**talk(("human", "<video> or <image>?"), ("gpt", "A.")), "image": "a.png", "video": "clip.mp4"}
    video = VideoRef(source=ImageRef(path="clip.mp4"))
    assert normalise(row).turns[0].parts == (video, " or ", A, "?")
    assert [part["type"] for part in normalise(row).messages()[0]["content"]] == ["video", "text", "image", "text"]


@settings(max_examples=400, deadline=None)
@given(JUNK | st.text(alphabet=st.characters(codec=None), max_size=30))
def test_fuzzed_row_is_a_sample_or_a_bad_row(row):
    try:
        sample = normalise(row, row_id="x")
    except BadRowError as bad:
        assert bad.code in CODES
    else:
        assert sample.turns[-1].role == "assistant" and sample.id


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), JUNK, max_size=3), max_size=5), JUNK
)
def test_fuzzed_turns_are_a_sample_or_a_bad_row(turns, image):
    try:
        normalise({"conversations": turns, "image": image})
    except BadRowError as bad:
        assert bad.code in CODES
