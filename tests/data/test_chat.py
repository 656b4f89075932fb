"""Supervised tokens are the assistant's text and the token that ends its turn: in every family, with a template that
marks answers and with one that does not. A template from which answers cannot be separated is refused."""

import pytest

from dart_train.data.chat_template import ChatTemplate
from dart_train.data.encoder import Encoder
from dart_train.data.formats import normalise
from dart_train.data.issues import BadRowError
from dart_train.data.sample import Sample, Turn
from dart_train.data.supervision import IGNORED
from tests.data.processors import LLAVA_STYLE, LLAVA_STYLE_MARKED, llava_with, unmarked
from tests.zoo import FAMILIES, make_image

ANSWERS = ["A red cat.", "Yes, très sûr:\n- one\n- two"]


def sample(questions=("<image> next to <image>\nWhat is it?", "Sure? "), answers=ANSWERS, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in zip(questions, answers, strict=True):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    marks = sum(question.count("<image>") for question in questions)
    return normalise({"messages": messages, "images": ["a.png"] * marks}, row_id="s")


def supervised(encoder, row):
    """The supervised spans, as lists of token ids."""
    images = [make_image(seed) for seed in range(len(row.images))]
    features = encoder.encode(row, images).features
    ids, labels = features["input_ids"][0].tolist(), features["labels"][0].tolist()
    spans, inside = [], False
    for token, label in zip(ids, labels, strict=True):
        if label != IGNORED:
            assert label == token
            spans = spans if inside else [*spans, []]
            spans[-1].append(token)
        inside = label != IGNORED
    return spans


@pytest.mark.parametrize("marks", [True, False], ids=["marked", "unmarked"])
@pytest.mark.parametrize("name", FAMILIES)
def test_supervised_tokens_are_the_answers_and_their_end_tokens(name, marks):
    processor = FAMILIES[name].processor()
    encoder = Encoder(processor if marks else unmarked(processor))
    assert encoder.template.marked == marks
    for row in (sample(), sample(("No image here?",), ANSWERS[:1]), sample(system="Be brief.")):
        answers = [turn.texts[0] for turn in row.turns if turn.role == "assistant"]
        spans = supervised(encoder, row)
        decoded = [processor.tokenizer.decode(span[:-1]).strip() for span in spans]
        assert decoded == answers
        assert {span[-1] for span in spans} == {processor.tokenizer.eos_token_id}


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_prompt_is_a_prefix_of_the_training_text(name):
    """The prompt at inference has the tokens that come before the first answer in training."""
    processor = FAMILIES[name].processor()
    encoder, row, images = Encoder(unmarked(processor)), sample(), [make_image(0), make_image(1)]
    features = encoder.encode(row, images).features
    question = row.messages()[:1]
    for part, image in zip((part for part in question[0]["content"] if part["type"] == "image"), images, strict=True):
        part["image"] = image
    prompt = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=True, return_dict=True)
    first = int((features["labels"][0] != IGNORED).nonzero()[0])
    assert features["input_ids"][0, :first].tolist() == list(prompt["input_ids"][0])


@pytest.mark.parametrize("template", [LLAVA_STYLE, LLAVA_STYLE_MARKED], ids=["unmarked", "marked"])
def test_template_without_end_token_gets_one_after_the_last_answer(template):
    processor = llava_with(template)
    encoder = Encoder(processor)
    assert encoder.template.appends_end
    first, last = supervised(encoder, sample(answers=["A red cat", "three"]))
    assert processor.tokenizer.decode(first) == "A red cat"  # and not the USER that follows: its token has the blank
    assert last[-1] == processor.tokenizer.eos_token_id and processor.tokenizer.decode(last[:-1]) == "three"


def test_end_token_right_after_the_generation_mark_is_supervised():
    source = FAMILIES["qwen2_vl"].processor().chat_template
    outside = source.replace("{{- '<|im_end|>' -}}{%- endgeneration -%}", "{%- endgeneration -%}{{- '<|im_end|>' -}}")
    assert outside != source
    processor = unmarked(FAMILIES["qwen2_vl"].processor())
    processor.chat_template = outside
    for span in supervised(Encoder(processor), sample()):
        assert span[-1] == processor.tokenizer.eos_token_id


REFUSED = {
    "only the last turn is closed": "{% for m in messages %}{{ m['role'] }}{% for p in m['content'] %}{{ p['text'] }}"
    "{% endfor %}{% if loop.last and m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}",
    "no generation prompt": "{% for m in messages %}{{ loop.length }}{{ m['content'][0]['text'] }}{% endfor %}",
    "a footer": LLAVA_STYLE + "{{ 'bye' }}",
    "marks around nothing": LLAVA_STYLE + "{% generation %}{% endgeneration %}",
    "it raises": "{{ raise_exception('no') }}",
    "the prompt ends in half a word": LLAVA_STYLE.replace("'ASSISTANT:'", "'ASSISTANT: '"),
}


@pytest.mark.parametrize("template", REFUSED.values(), ids=REFUSED.keys())
def test_template_without_separable_answers_is_refused_before_training(template):
    with pytest.raises(ValueError, match="cannot separate the assistant") as error:
        ChatTemplate(llava_with(template))
    assert "{% generation %}" in str(error.value) and not isinstance(error.value, BadRowError)


def test_processor_without_chat_template_is_refused():
    with pytest.raises(ValueError, match="has no chat template"):
        ChatTemplate(llava_with(None))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "idefics3"])
def test_control_tokens_in_text_are_refused(name):
    encoder = Encoder(FAMILIES[name].processor())
    for token in (encoder.processor.tokenizer.eos_token, encoder.processor.image_token):
        row = Sample("s", (Turn("user", ("Say it",)), Turn("assistant", (f"say {token} now",))))
        for action in (encoder.encode, encoder.measure):
            with pytest.raises(BadRowError, match="control_token"):
                action(row, ())


def test_image_inside_an_answer_is_not_supervised():
    encoder = Encoder(FAMILIES["qwen2_vl"].processor())
    messages = [{"role": "user", "content": "Draw"}, {"role": "assistant", "content": "Here: <image> it is."}]
    features = encoder.encode(normalise({"messages": messages, "images": ["a.png"]}), [make_image(0)]).features
    visual = features["input_ids"][0] == encoder.processor.image_token_id
    assert visual.any() and (features["labels"][0][visual] == IGNORED).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_length_measured_from_sizes_is_the_encoded_length(name):
    processor = FAMILIES[name].processor()
    encoder = Encoder(processor)
    for questions in (("<image>a",), ("<image><image>b <image>",), ("none",)):
        row = sample(questions, ANSWERS[:1])
        images = [make_image(seed) for seed in range(len(row.images))]
        length = encoder.measure(row, tuple(image.size for image in images))
        features = encoder.encode(row, images).features
        assert length.total == length.used == features["input_ids"].shape[1]
        visual = sum(int((features["input_ids"] == token).sum()) for token in encoder.image_tokens.visual)
        assert sum(length.visual) == visual and len(length.visual) == len(images)


@pytest.mark.parametrize("name", FAMILIES)
def test_visual_tokens_are_those_that_the_model_replaces(name):
    model_id = FAMILIES[name].model().config.image_token_id
    assert Encoder(FAMILIES[name].processor()).image_tokens.visual == {model_id}
