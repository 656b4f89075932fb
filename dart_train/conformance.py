"""`check(model, processor)`: the laws of the reduction, proved on the user's own model in seconds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import GenerationConfig

from .hooks import attach
from .hooks.reference import masked_logits, plain_logits
from .models.prompts import Conversation, build_inputs, prompt_problems, to_device, user_message
from .models.structure import find_parts
from .reduction import DART, KeepAll, Random, Reducer

# What the laws are built from: forwards, a few weights to train, differences.

STEPS = 8


@torch.no_grad()
def logits_of(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """[B, L, V]."""
    return model(**inputs, use_cache=False).logits


@torch.no_grad()
def greedy(model: Any, inputs: Mapping[str, Any], use_cache: bool) -> Any:
    """STEPS new tokens and their logits. Visual tokens stay out: no forward takes one without its picture."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
        suppress_tokens=list(find_parts(model).visual_ids),
        pad_token_id=model.generation_config.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id,
    )
    return model.generate(**inputs, generation_config=config)


@contextmanager
def only_few_trained(model: nn.Module, layer: int) -> Iterator[dict[str, nn.Parameter]]:
    """All other parameters frozen for a while: a check must fit where the model fits."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    layers = find_parts(model).layers
    few = {f"layer {i}": _smallest_weight(layers[i]) for i in sorted({0, layer, len(layers) - 1})}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for parameter in few.values():
            parameter.requires_grad_(True)
        yield few
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def _smallest_weight(layer: nn.Module) -> nn.Parameter:
    weights = [p for name, p in layer.named_parameters() if name.endswith("weight") and p.is_floating_point()]
    return min(weights, key=lambda weight: weight.numel())


def last_tokens(real: Tensor, number: int) -> Tensor:
    """[B, L] bool: the last `number` real tokens of each row."""
    behind = real.long().flip(1).cumsum(1).flip(1)
    return real & (behind <= number)


def apart(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """The largest difference, relative to the largest value of b; not a number where either has one."""
    if where is not None:
        a, b = a[where], b[where]
    a, b = a.float(), b.float()
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def worst(differences: Iterable[float]) -> float:
    """The largest; not a number as soon as one is (which Python's max would pass over)."""
    return float(torch.tensor(list(differences)).max())


def count_hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


# Two pictures and two questions of different length, through the user's own processor and chat template.

QUESTIONS = ("What is this?", "Which of the shapes in the picture is the largest, and what is its colour?")
SIZES = ((448, 336), (336, 336))


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Coloured shapes under noise: no two patches are equal, so that a wrong token shows."""
    chance = random.Random(seed)
    image = Image.new("RGB", size, tuple(chance.randbytes(3)))
    draw = ImageDraw.Draw(image)
    for shape in (draw.rectangle, draw.ellipse) * 3:
        left, top = chance.randrange(size[0] * 3 // 4), chance.randrange(size[1] * 3 // 4)
        corner = (left + chance.randrange(size[0] // 8, size[0] // 2), top + size[1] // 4)
        shape((left, top, *corner), fill=tuple(chance.randbytes(3)))
    return Image.blend(image, Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1])), 0.25)


def ragged_batch(processor: Any, model: Any) -> dict[str, Any]:
    """A batch of two for `model(**batch)`, prompts of different length, padded on the left."""
    if problems := prompt_problems(processor):
        raise ValueError("; ".join(problems))
    conversations = [_conversation(question, number) for number, question in enumerate(QUESTIONS)]
    return to_device(build_inputs(processor, conversations), model)


def _conversation(question: str, number: int) -> Conversation:
    return [user_message(question, [picture(number, SIZES[number])])]


# The laws that make a reduction right, each held against one model on one batch.

SUPERVISED = 4


@dataclass(frozen=True)
class Subject:
    """tolerance: half of the digits of the model's dtype. plain: its logits [B, L, V], nothing attached."""

    model: Any
    inputs: Mapping[str, Any]
    tolerance: float
    plain: Tensor
    hooks: int

    @classmethod
    def of(cls, model: Any, inputs: Mapping[str, Any]) -> Subject:
        tolerance = math.sqrt(torch.finfo(model.dtype).eps)
        with torch.no_grad():
            return cls(model, inputs, tolerance, plain_logits(model, inputs), count_hooks(model))

    @property
    def real(self) -> Tensor:
        """[B, L] bool."""
        return self.inputs["attention_mask"].bool()


def keep_all(subject: Subject, reducer: Reducer) -> Finding:
    """reducer: keep-all at some layer."""
    with attach(subject.model, reducer):
        logits = logits_of(subject.model, subject.inputs)
    difference = apart(logits, subject.plain, subject.real)
    return Finding.of("keep-all changes nothing", difference, subject.tolerance, f"at layer {reducer.layer}")


def reduced(subject: Subject, reducer: Reducer) -> Finding:
    """The short forward, against the full-length one that hides what was dropped."""
    law = f"{reducer.name}: reduced = dropped tokens masked"
    with attach(subject.model, reducer) as attached:
        logits = logits_of(subject.model, subject.inputs)
    kept = attached.last
    if kept is None:
        return Finding(law, "does not hold", note="the forward saw no visual token")
    before, after = sum(kept.visual_before), sum(kept.visual_after)
    note = f"kept {after} of {before} visual tokens from layer {reducer.layer} on"
    if after == before:
        return Finding(law, "not checked", note="nothing was dropped")
    if reducer.merge != "none" or type(reducer).merge_targets is not Reducer.merge_targets:
        return Finding(law, "not checked", note=f"{note}; dropped tokens live on in kept ones")
    try:
        with torch.no_grad():
            truth = masked_logits(subject.model, subject.inputs, [(reducer.layer, kept.mask)])
    except NotImplementedError as refusal:
        return Finding(law, "not checked", note=str(refusal))
    return Finding.of(law, apart(logits, truth, kept.mask), subject.tolerance, note)


def generation(subject: Subject, reducer: Reducer) -> Finding:
    """Step by step, as long as both go the same way: after an honest tie the texts differ, and rightly so."""
    law = f"{reducer.name}: generation with a cache = without"
    with attach(subject.model, reducer):
        cached, uncached = (greedy(subject.model, subject.inputs, use_cache) for use_cache in (True, False))
    differences = [d for row in range(len(subject.real)) for d in _steps_apart(cached, uncached, row)]
    note = f"{len(differences)} of {STEPS * len(subject.real)} greedy steps compared"
    return Finding.of(law, worst(differences), subject.tolerance, note)


def _steps_apart(one: Any, other: Any, row: int) -> Iterator[float]:
    """Differences of the logits of one row, up to the step at which the two texts part."""
    start = one.sequences.shape[1] - STEPS
    for step in range(STEPS):
        yield apart(one.logits[step][row], other.logits[step][row])
        if one.sequences[row, start + step] != other.sequences[row, start + step]:
            return


def gradients(subject: Subject, reducer: Reducer) -> Finding:
    """Of the loss of each row's last tokens, by a weight of the first, the first short and the last layer."""
    law = f"{reducer.name}: gradients, full length = compact"
    labels = subject.inputs["input_ids"].masked_fill(~last_tokens(subject.real, SUPERVISED), -100)
    found: list[Sequence[Tensor]] = []
    with torch.enable_grad(), only_few_trained(subject.model, reducer.layer) as few:
        for output in ("expand", "compact"):
            with attach(subject.model, reducer, output=output):
                loss = subject.model(**subject.inputs, labels=labels, use_cache=False).loss
            found.append([loss.detach(), *torch.autograd.grad(loss, list(few.values()))])
    still = [name for name, gradient in zip(few, found[0][1:], strict=True) if not gradient.any()]
    if still:
        return Finding(law, "does not hold", note=f"no gradient reaches {', '.join(still)}")
    difference = worst(apart(one, other) for one, other in zip(*found, strict=True))
    note = f"loss {float(found[0][0]):.4g}, weights of {', '.join(few)}"
    return Finding.of(law, difference, subject.tolerance, note)


def removal(subject: Subject) -> Finding:
    law = "removal leaves the model as it was"
    left = count_hooks(subject.model) - subject.hooks
    if left:
        return Finding(law, "does not hold", note=f"{left} hooks are left")
    with torch.no_grad():
        logits = plain_logits(subject.model, subject.inputs)
    return Finding.of(law, apart(logits, subject.plain, subject.real), subject.tolerance)


# What a check found, as a small table.

Verdict = Literal["holds", "does not hold", "not checked"]


@dataclass(frozen=True)
class Finding:
    """One law. number: the largest difference found, relative; note: what was compared, or why it was not."""

    law: str
    verdict: Verdict
    number: float | None = None
    note: str = ""

    @classmethod
    def of(cls, law: str, difference: float, tolerance: float, note: str = "") -> Finding:
        """Not a number fails, too."""
        return cls(law, "holds" if difference <= tolerance else "does not hold", difference, note)


@dataclass(frozen=True)
class CheckReport:
    model: str
    findings: tuple[Finding, ...]
    tolerance: float

    @property
    def ok(self) -> bool:
        """Nothing that was checked failed, and something was checked."""
        verdicts = [finding.verdict for finding in self.findings]
        return "does not hold" not in verdicts and "holds" in verdicts

    def __str__(self) -> str:
        rows = [(f.law, f.verdict, _written(f.number), f.note) for f in self.findings]
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{law:{wide[0]}}  {verdict:{wide[1]}}  {n:>{wide[2]}}  {note}" for law, verdict, n, note in rows]
        head = f"{self.model} (differences relative to the largest value, allowed {self.tolerance:.0e})"
        return "\n".join([head, *map(str.rstrip, lines)])


def _written(number: float | None) -> str:
    return "" if number is None else f"{number:.1e}"


Law = Callable[[Subject, Reducer], Finding]


def check(model: Any, processor: Any, reducers: Sequence[Reducer] | None = None, *, show: bool = True) -> CheckReport:
    """Hold the laws against a model that nobody may have tried before, and print what holds.

    reducers: what to check; DART and Random at a quarter of the visual tokens unless given.
    A model that the reduction cannot be attached to: `NotImplementedError`, which names what is missing.
    """
    reducers = default_reducers(model) if reducers is None else list(reducers)
    for reducer in reducers:
        attach(model, reducer).remove()  # every refusal speaks here, before anything runs
    training = model.training
    model.eval()
    try:
        report = _report(model, processor, reducers)
    finally:
        model.train(training)
    if show:
        print(report)
    return report


def default_reducers(model: Any) -> list[Reducer]:
    """At layer 2, or in the middle of a model that is too shallow for that."""
    layer = min(2, len(find_parts(model).layers) // 2)
    return [DART(keep=0.25, layer=layer), Random(keep=0.25, layer=layer)]


def _report(model: Any, processor: Any, reducers: Sequence[Reducer]) -> CheckReport:
    subject = Subject.of(model, ragged_batch(processor, model))
    layers = sorted({reducer.layer for reducer in reducers})
    findings = [_held(keep_all, subject, KeepAll(layer=layer)) for layer in layers]
    for reducer in reducers:
        findings += [_held(law, subject, reducer) for law in (reduced, generation, gradients)]
    findings.append(removal(subject))
    name = f"{type(find_parts(model).top).__name__}, {str(model.dtype).removeprefix('torch.')}"
    return CheckReport(name, tuple(findings), subject.tolerance)


def _held(law: Law, subject: Subject, reducer: Reducer) -> Finding:
    """What is refused or breaks does not hold; the other laws are tried all the same."""
    try:
        return law(subject, reducer)
    except Exception as error:
        note = f"{type(error).__name__}: {error}"
        return Finding(f"{reducer.name}: {law.__name__}", "does not hold", note=note)
