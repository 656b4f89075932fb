"""System and tool turns, calls of functions, weights of turns: what is supervised, and what a template leaves out."""

import json

import pytest
import torch

from dart_train.data.collator import Collator
from dart_train.data.encoder import Encoder
from dart_train.data.formats import normalise
from dart_train.data.issues import BadRowError
from dart_train.data.supervision import IGNORED, LOSS_WEIGHTS
from dart_train.models.processors import set_chat_template
from tests.data.processors import unmarked
from tests.zoo import FAMILIES, make_image

# In the manner of Qwen2.5: functions in the system turn, calls and results in tags.
TOOLS_TEMPLATE = """
{%- macro text(content) -%}{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endmacro -%}
{%- if tools -%}<|im_start|>system\nYou can call{% for tool in tools %} {{ tool | tojson }}{% endfor %}<|im_end|>\n
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}<|im_start|>user\nresult: {{ text(message.content) }}<|im_end|>\n
{%- elif message.role == 'assistant' -%}<|im_start|>assistant\n
{%- generation -%}{{ text(message.content) }}
{%- for call in message.tool_calls or [] -%}call {{ call.function.name }} {{ call.function.arguments | tojson }}
{%- endfor -%}<|im_end|>{%- endgeneration -%}{{ '\n' }}
{%- else -%}<|im_start|>{{ message.role }}\n{{ text(message.content) }}<|im_end|>\n
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}
"""
LOOK = {"name": "look", "arguments": {"at": "top"}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}]


def processor(marks=True):
    import copy

    made = copy.copy(FAMILIES["qwen2_vl"].processor())
    set_chat_template(made, TOOLS_TEMPLATE)
    return made if marks else unmarked(made)


def row(*turns, **more):
    messages = [{"role": role, **({"content": given} if isinstance(given, str) else given)} for role, given in turns]
    marks = sum(given.count("<image>") for _, given in turns if isinstance(given, str))
    return normalise({"messages": messages, "images": ["a.png"] * marks, **more}, row_id="r")


CALLING = (
    ("system", "Be brief."),
    ("user", "<image>What is there?"),
    ("assistant", {"content": None, "tool_calls": [{"type": "function", "function": LOOK}]}),
    ("tool", "a cat"),
    ("tool", "and <image>"),
    ("assistant", "A cat."),
    ("system", "Now shout."),
    ("user", "Again?"),
    ("assistant", "A CAT!"),
)


def spans(encoder, sample):
    """Each supervised stretch as text."""
    features = encoder.encode(sample, [make_image(n) for n in range(len(sample.images))]).features
    ids, labels = features["input_ids"][0], features["labels"][0]
    found, inside = [], False
    for token, label in zip(ids, labels, strict=True):
        if label != IGNORED:
            found = found if inside else [*found, []]
            found[-1].append(token)
        inside = bool(label != IGNORED)
    return [encoder.processor.tokenizer.decode(span).removesuffix("<|im_end|>").strip() for span in found]


@pytest.mark.parametrize("marks", [True, False], ids=["marked", "unmarked"])
def test_calls_and_answers_are_supervised_and_nothing_else(marks):
    encoder = Encoder(processor(marks))
    calls = f"call look {json.dumps(LOOK['arguments'])}"
    found = spans(encoder, row(*CALLING, tools=TOOLS))
    assert ["".join(text.split()) for text in found] == ["".join(text.split()) for text in (calls, "A cat.", "A CAT!")]
    assert "look" in encoder.answers(row(*CALLING, tools=TOOLS))[0].split("Be brief.")[0]


@pytest.mark.parametrize("marks", [True, False], ids=["marked", "unmarked"])
def test_a_weight_belongs_to_the_answer_of_its_turn(marks):
    encoder, turns = Encoder(processor(marks)), list(CALLING)
    turns[5] = ("assistant", {"content": "A cat.", "weight": 0})
    assert len(spans(encoder, row(*turns))) == 2 and spans(encoder, row(*turns))[-1] == "A CAT!"
    turns[8] = ("assistant", {"content": "A CAT!", "weight": 0.25})
    features = encoder.encode(row(*turns), [make_image(0), make_image(1)]).features
    weights, labels = features[LOSS_WEIGHTS][0], features["labels"][0]
    assert sorted(set(weights.tolist())) == [0.0, 0.25, 1.0]
    assert torch.equal(weights > 0, labels != IGNORED)
    last = encoder.processor.tokenizer.decode(labels[weights == 0.25])
    assert last.removesuffix("<|im_end|>").strip() == "A CAT!"


def test_batches_without_weights_have_no_such_tensor_and_others_have_ones():
    encoder = Encoder(processor())
    collate = Collator(encoder.processor)
    plain = encoder.encode(row(("user", "Hi"), ("assistant", "Ho")), [])
    half = encoder.encode(row(("user", "Hi there"), ("assistant", {"content": "Ho", "weight": 0.5})), [])
    assert LOSS_WEIGHTS not in collate([plain, plain])
    batch = collate([plain, half])
    assert batch[LOSS_WEIGHTS].shape == batch["labels"].shape
    assert torch.equal(batch[LOSS_WEIGHTS][0] == 1, batch["labels"][0] != IGNORED)
    assert torch.equal(batch[LOSS_WEIGHTS][1] == 0.5, batch["labels"][1] != IGNORED)


def test_a_row_whose_answers_all_have_weight_0_cannot_be_used():
    with pytest.raises(BadRowError) as error:
        Encoder(processor()).encode(row(("user", "Hi"), ("assistant", {"content": "Ho", "weight": 0})), [])
    assert error.value.code == "nothing_supervised"


LEFT_OUT = {
    "turns of a tool": ("{%- if message.role == 'tool' -%}", "{%- if message.role == 'none' -%}"),
    "calls of functions": ("message.tool_calls or []", "[]"),
    "the functions of the row": ("{%- if tools -%}", "{%- if false -%}"),
    "a system turn": ("{%- else -%}<|im_start|>{{ message.role }}", "{%- elif message.role == 'user' -%}"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_template_leaves_out_is_refused(name):
    made = processor()
    source = TOOLS_TEMPLATE.replace(*LEFT_OUT[name])
    if name == "turns of a tool":
        source = source.replace("{%- else -%}<|im_start|>{{", "{%- elif message.role != 'tool' -%}<|im_start|>{{")
    assert source != TOOLS_TEMPLATE
    set_chat_template(made, source)
    encoder = Encoder(made)
    encoder.encode(row(("user", "Hi"), ("assistant", "Ho")), [])
    with pytest.raises(BadRowError, match=f"leaves out or refuses {name}.*data.template") as error:
        encoder.encode(row(*CALLING, tools=TOOLS), [make_image(0), make_image(1)])
    assert error.value.code == "template_failed"


def test_lengths_are_those_of_the_encoded_row():
    encoder = Encoder(processor(), max_length=2000)
    sample = row(*CALLING, tools=TOOLS)
    images = [make_image(0), make_image(1)]
    encoded = encoder.encode(sample, images)
    assert encoder.measure(sample, tuple(image.size for image in images)).total == encoded.length
