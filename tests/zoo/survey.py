"""Every image class of the installed transformers, held against the laws of the reduction.

    python -m tests.zoo.survey                  # all classes, one line each (minutes)
    python -m tests.zoo.survey qwen3_5 gemma4   # these, law by law
    python -m tests.zoo.survey --markdown > recipes/MODELS.md   # the table of the documentation

`survey(name)` builds the tiny model of `tests.zoo.every_model` and returns a `Finding` for each law and kernel. What
the reduced forward is compared with is computed by the plain model: the full-length forward in which the mask hides
the dropped tokens from layers >= K (`tests.fixtures.reference_forward`), and the plain model continuing its own cache.

A law `holds`, is `refused` (with the package's sentence), `fails` in the plain model already, `crashes`, or is `wrong`
(with the difference, relative to the largest logit).
"""

from __future__ import annotations

import copy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dart_train import DART, KeepAll, Random, Reducer, attach
from dart_train.models.families import find_family
from tests.fixtures.gathered_forward import gathering
from tests.zoo import FAMILIES, HYBRIDS, every_model
from tests.zoo.more_families import MORE_FAMILIES

Verdict = Literal["holds", "refused", "fails", "crashes", "wrong"]
KERNELS = ("sdpa", "eager")
K = 2  # the layer of the reduction
KEEP = 5  # visual tokens of each sample
GRID = (3, 4)  # rows and columns of the visual tokens of an image
IMAGE_TOKENS = GRID[0] * GRID[1]
NEW = 6  # generated tokens
SMALL_WINDOW = 24  # shorter than the prompts
TOLERANCE = 1e-4  # relative, float32
RECURRENT_TOLERANCE = 1e-3  # a recurrence adds up rounding: embeddings moved by 3e-7 move its logits by 3e-4
RECURRENT = {"conv", "linear_attention"}  # types of layers
# Nemotron-H's single steps differ from its scan by 1e-3 without a reduction, too.
TOLERANCES = {"nemotron_h_omni": 1e-2}
IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id")


@dataclass(frozen=True)
class Finding:
    """number: the largest relative difference; note: the message of a refusal or a crash."""

    law: str
    kernel: str
    verdict: Verdict
    number: float | None = None
    note: str = ""

    def __str__(self) -> str:
        number = "" if self.number is None else f"{self.number:.1e}"
        return f"{self.kernel:5} {self.law:34} {self.verdict:8} {number:8} {self.note}"


class PlainModelFails(Exception):
    """The law cannot be tested: the model without a reduction does not run these inputs."""


# inputs -----------------------------------------------------------------------------------------------------


def image_id(config: Any) -> int:
    return next(int(vars(config)[name]) for name in IMAGE_IDS if vars(config).get(name) is not None)


def text(number: int, seed: int) -> list[int]:
    """Ids of ordinary tokens, which no family uses for anything else."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(30, 110, (number,), generator=generator).tolist()


# How families return the features of several images; `find_form` finds which one a class takes.
FORMS: dict[str, Callable[[list[Tensor]], Any]] = {
    "list": list,
    "stacked": torch.stack,
    "flat": torch.cat,
}
_form_of: dict[str, str] = {}


def features(model: Any, images: int, seed: int) -> BaseModelOutputWithPooling:
    """What the vision tower gives for this many images."""
    generator, width = torch.Generator().manual_seed(seed), every_model.feature_width(model)
    each = [torch.randn(IMAGE_TOKENS, width, generator=generator) for _ in range(images)]
    form = FORMS[_form_of.get(type(model).__name__, "list")]
    encoded = BaseModelOutputWithPooling(pooler_output=form(each))
    every_model.adapt_features(model, encoded, images, IMAGE_TOKENS)
    return encoded


def find_form(model: Any) -> None:
    """Remember the form of features that the plain model takes."""
    errors = []
    for form in FORMS:
        _form_of[type(model).__name__] = form
        try:
            with torch.no_grad():
                plain(model, ragged(model), use_cache=False)
            return
        except PlainModelFails as error:
            errors.append(f"{form}: {error}")
    raise PlainModelFails("; ".join(errors))


def row_of(model: Any, *parts: int | str, seed: int = 0) -> list[int]:
    """Ids of one row: a number is so much text, "image" the tokens of one image."""
    ids: list[int] = []
    for number, part in enumerate(parts):
        ids += [image_id(model.config)] * IMAGE_TOKENS if part == "image" else text(int(part), seed * 100 + number)
    return ids


def batch(model: Any, rows: Sequence[list[int]], side: str = "left", seed: int = 0) -> dict[str, Any]:
    """Model inputs for rows of ids, padded on one side; images in the order of the rows."""
    visual, length = image_id(model.config), max(map(len, rows))
    padding = [[every_model.PAD] * (length - len(row)) for row in rows]
    ids = torch.tensor([p + row if side == "left" else row + p for p, row in zip(padding, rows, strict=True)])
    real = [[0] * len(p) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(p)
            for p, row in zip(padding, rows, strict=True)]  # fmt: skip
    images = sum(row.count(visual) for row in rows) // IMAGE_TOKENS
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.tensor(real)}
    takes = every_model.forward_parameters(model)
    for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if name in takes:
            inputs[name] = (ids == visual).long()
    if model.config.model_type == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(ids)  # 1 marks an answer; before it, attention goes both ways
    if images:
        inputs["mm_encoder_outputs"] = {"image": features(model, images, seed)}
        if "image_grid_thw" in takes:
            merge, (height, width) = 2, every_model.grid_of(model, GRID)
            inputs["image_grid_thw"] = torch.tensor([[1, height * merge, width * merge]] * images)
        every_model.adapt_inputs(model, inputs)
    return inputs


def ragged(model: Any, side: str = "left") -> dict[str, Any]:
    """One image, two images, and a longer row of text alone: it keeps its full length in all layers."""
    rows = [
        row_of(model, 4, "image", 6, seed=1),
        row_of(model, 3, "image", 5, "image", 4, seed=2),
        row_of(model, 40, seed=3),
    ]
    return batch(model, rows, side)


def fresh(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Some models write to the dictionary of encoder outputs that they are given."""
    encoded = inputs.get("mm_encoder_outputs")
    return {**inputs, "mm_encoder_outputs": dict(encoded)} if encoded else dict(inputs)


# the slow reference ----------------------------------------------------------------------------------------------


def hidden(mask: Any, keep: Tensor, queries: int, prefill: int = 0) -> Tensor:
    """mask [B, 1, Q, N] (bool or additive) or None, keep [B, total] -> the same with dropped columns hidden; N is
    total, or less in a cache that slides: then these are the first `prefill` tokens and the last ones. A dropped token
    still sees itself, so that no row is empty; its output is unused."""
    total = keep.shape[1]
    if mask is None:
        mask = torch.ones(queries, total, dtype=torch.bool).tril(total - queries)[None, None]
    own = torch.eye(total, dtype=torch.bool)[total - queries :][None, None] & ~keep[:, None, None, :]
    places, prefill = torch.arange(total), min(prefill, mask.shape[-1])
    columns = torch.cat([places[:prefill], places[total - (mask.shape[-1] - prefill) :]])
    own, column = own[..., columns], keep[:, None, None, columns]
    if mask.dtype == torch.bool:
        return (mask & column) | own
    return mask.masked_fill(~column, torch.finfo(mask.dtype).min).masked_fill(own, 0.0)


@contextmanager
def hiding(model: Any, keep: Tensor, past: int = 0) -> Iterator[None]:
    """Inside, layers >= K of the plain model do not see dropped tokens. keep [B, N]: `past` cached tokens included;
    tokens of later forwards are all seen."""
    totals: dict[int, int] = {}
    stays = "reference_sliding_attention" in (getattr(every_model.decoder(model).config, "layer_types", None) or ())
    prefill = (past or keep.shape[1]) if stays else 0

    layers = every_model.decoder(model).layers
    if is_recurrent(model):
        with gathering(layers[K:], keep):  # a recurrent state runs over hidden tokens, too
            yield
        return

    def before(layer: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        mask, queries = kwargs.get("attention_mask"), args[0].shape[-2]
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 4):
            raise PlainModelFails(f"the layers get a mask of type {type(mask).__name__}")
        totals[layer] = totals.get(layer, past) + queries
        more = keep.new_ones(keep.shape[0], max(0, totals[layer] - keep.shape[1]))
        seen = torch.cat([keep, more], 1)[:, : totals[layer]]
        return args, {**kwargs, "attention_mask": hidden(mask, seen, queries, prefill)}

    handles = [
        layers[layer].register_forward_pre_hook(partial(before, layer), with_kwargs=True)
        for layer in range(K, len(layers))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def difference(one: Tensor, other: Tensor, where: Tensor) -> float:
    """The largest difference at `where` [B, L], relative to the largest value; NaN where either has one."""
    a, b = one.float()[where], other.float()[where]
    return float((a - b).abs().max() / b.abs().max())


def plain(model: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    """The output of the model without a reduction."""
    try:
        return model(**fresh(inputs), **options)
    except PlainModelFails:
        raise
    except Exception as error:
        raise PlainModelFails(f"{type(error).__name__}: {error}") from error


# the laws ----------------------------------------------------------------------------------------------------------


def keep_all(model: Any, side: str) -> float:
    inputs = ragged(model, side)
    wanted = plain(model, inputs, use_cache=False).logits
    with attach(model, KeepAll(layer=K)):
        logits = model(**fresh(inputs), use_cache=False).logits
    return difference(logits, wanted, inputs["attention_mask"].bool())


def reduced(model: Any, reducer: Reducer, side: str, use_cache: bool = False) -> float:
    inputs = ragged(model, side)
    plain(model, inputs, use_cache=use_cache)
    with attach(model, reducer) as attached:
        logits = model(**fresh(inputs), use_cache=use_cache).logits
        keep = attached.last.mask
    assert int(keep.sum()) < int(inputs["attention_mask"].sum()), "nothing was dropped"
    with hiding(model, keep):
        wanted = plain(model, inputs, use_cache=False).logits
    return difference(logits, wanted, keep)


def same_choice(model: Any, reducer: Reducer) -> float:
    """The share of tokens that padding on the left, on the right, and no padding select differently."""
    rows = [row_of(model, 4, "image", 6, seed=1), row_of(model, 9, "image", 5, seed=2), row_of(model, 40, seed=3)]
    chosen = []
    for batches in ([batch(model, rows, "left")], [batch(model, rows, "right")], one_by_one(model, rows)):
        found: list[Tensor] = []
        with torch.no_grad(), attach(model, reducer) as attached:
            for inputs in batches:
                model(**fresh(inputs), use_cache=False)
                length, real = inputs["input_ids"].shape, inputs["attention_mask"].bool()
                keep = kept_or_all(attached, length[1], length[0]) if "mm_encoder_outputs" in inputs else real
                found += [keep[row][real[row]] for row in range(len(real))]
        chosen.append(torch.cat(found))
    return float(max((chosen[0] != other).float().mean() for other in chosen[1:]))


def one_by_one(model: Any, rows: Sequence[list[int]]) -> list[dict[str, Any]]:
    """The rows as batches of one, each with the features of its images in the batch of all."""
    together, batches, first = batch(model, rows), [], 0
    for row in rows:
        images, inputs = row.count(image_id(model.config)) // IMAGE_TOKENS, batch(model, [row])
        if images:
            encoded = copy.copy(together["mm_encoder_outputs"]["image"])
            for name, value in encoded.items():
                if name != "visual_indicator_features":
                    encoded[name] = of_images(value, slice(first, first + images))
            inputs["mm_encoder_outputs"] = {"image": encoded}
        first += images
        batches.append(inputs)
    return batches


def of_images(value: Any, images: slice) -> Any:
    """Of features in a list, stacked or flat, or in a list for each of several layers: those of some images."""
    if isinstance(value, Tensor):
        size = 1 if value.ndim == 3 else IMAGE_TOKENS
        return value[images.start * size : images.stop * size]
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return value[images]
    return type(value)(of_images(each, images) for each in value) if isinstance(value, list | tuple) else value


def generation(model: Any, reducer: Reducer) -> float:
    """Each step of cached generation, against that of the plain model, which hides the same tokens and is made to
    generate the same ones."""
    inputs = ragged(model, "left")
    length = inputs["input_ids"].shape[1]
    options = {
        "max_new_tokens": NEW,
        "min_new_tokens": NEW,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
        "suppress_tokens": [image_id(model.config)],
        "pad_token_id": every_model.PAD,
    }
    with torch.no_grad():
        try:
            model.generate(**fresh(inputs), **options)
        except Exception as error:
            raise PlainModelFails(f"generate: {type(error).__name__}: {error}") from error
        with attach(model, reducer) as attached:
            out = model.generate(**fresh(inputs), **options)
            keep = attached.last.mask
        assert int(keep.sum()) < int(inputs["attention_mask"].sum()), "nothing was dropped"
        if is_recurrent(model):  # its reference runs without a cache
            new = out.sequences[:, length:]
            with hiding(model, torch.cat([keep, torch.ones_like(new).bool()], 1)):
                wanted = plain(model, lengthened(inputs, new), use_cache=False).logits[:, -NEW - 1 : -1]
            return difference(torch.stack(out.logits, 1), wanted, torch.ones(wanted.shape[:2]).bool())
        same = lambda row, ids: [int(out.sequences[row, len(ids)])]  # noqa: E731
        with hiding(model, keep):
            wanted = model.generate(**fresh(inputs), **options, prefix_allowed_tokens_fn=same)
    assert torch.equal(wanted.sequences[:, length:], out.sequences[:, length:])
    one, other = torch.stack(out.logits, 1), torch.stack(wanted.logits, 1)
    return difference(one, other, torch.ones(one.shape[:2]).bool())


def second_turn(model: Any, reducer: Reducer | None, image: bool) -> float:
    """A second turn, with or without an image, that continues the cache of the first one. The plain model does the
    same with dropped tokens hidden."""
    rows = [row_of(model, 4, "image", 6, seed=1), row_of(model, 9, "image", 5, seed=2)]
    more = [row_of(model, 3, *(["image"] if image else []), 4, seed=5 + n) for n in range(2)]
    first, later = batch(model, rows), batch(model, more, seed=7)
    later["attention_mask"] = torch.cat([first["attention_mask"], later["attention_mask"]], 1)
    every_model.add_positions(model, first, later)
    now = partial(two_turns, model, first, later)
    wanted = now(plain)
    run = lambda model, inputs, **options: model(**fresh(inputs), **options)  # noqa: E731
    if reducer is None:
        with attach(model, KeepAll(layer=K)):
            logits = now(run)
        return difference(logits, wanted, torch.ones(logits.shape[:2]).bool())
    with attach(model, reducer) as attached:
        keeps: list[Tensor] = []
        logits = now(run, lambda length: keeps.append(kept_or_all(attached, length, len(rows))))
    keep_first, keep_later = keeps
    if is_recurrent(model):  # its reference runs without a cache
        with torch.no_grad(), hiding(model, torch.cat([keep_first & first["attention_mask"].bool(), keep_later], 1)):
            both = plain(model, joined(first, later), use_cache=False).logits
        return difference(logits, both[:, -logits.shape[1] :], keep_later)
    keeps = [keep_first & first["attention_mask"].bool(), torch.cat([keep_first, keep_later], 1)]
    wanted = now(lambda *a, **o: hidden_run(keeps, *a, **o))
    return difference(logits, wanted, keep_later)


def lengthened(inputs: Mapping[str, Any], new: Tensor) -> dict[str, Any]:
    """The same inputs with more text."""
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], new], 1)}
    for name in ("attention_mask", "mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
        if name in inputs:
            more = torch.full_like(new, int(name == "attention_mask"))
            longer[name] = torch.cat([inputs[name], more], 1)
    return longer


def joined(first: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Two turns of one image a row, or of none in the later one, as one sequence."""
    both = {name: torch.cat([x, later[name]], -1) for name, x in first.items()
            if isinstance(x, Tensor) and name not in ("attention_mask", "image_grid_thw")}  # fmt: skip
    both["attention_mask"] = later["attention_mask"]
    encoded = [turn["mm_encoder_outputs"]["image"] for turn in (first, later) if "mm_encoder_outputs" in turn]
    grids = [turn["image_grid_thw"] for turn in (first, later) if "image_grid_thw" in turn]
    rows = range(len(both["input_ids"]))
    together = copy.copy(encoded[0])
    together["pooler_output"] = [turn.pooler_output[row] for row in rows for turn in encoded]
    both["mm_encoder_outputs"] = {"image": together}
    if grids:
        both["image_grid_thw"] = torch.stack([turn[row] for row in rows for turn in grids])
    return both


def is_recurrent(model: Any) -> bool:
    return bool(RECURRENT & set(getattr(every_model.decoder(model).config, "layer_types", None) or ()))


def kept_or_all(attached: Any, length: int, rows: int) -> Tensor:
    """What the last forward kept, where it had images: a text turn leaves `last` as it was."""
    last = attached.last
    return last.mask if last is not None and last.mask.shape[1] == length else torch.ones(rows, length).bool()


def hidden_run(keeps: list[Tensor], model: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    total = inputs["attention_mask"].shape[1]
    past = total - inputs["input_ids"].shape[1]
    with hiding(model, next(keep for keep in keeps if keep.shape[1] == total), past):
        return plain(model, inputs, **options)


def two_turns(
    model: Any,
    first: Mapping[str, Any],
    later: Mapping[str, Any],
    run: Callable[..., Any],
    after: Callable[[int], None] = lambda length: None,
) -> Tensor:
    """Logits of the second turn. after: called after each forward."""
    with torch.no_grad():
        out = run(model, first, use_cache=True)
        after(first["input_ids"].shape[1])
        name = next(n for n in ("cache", "past_key_values") if n in every_model.forward_parameters(model))
        cache = getattr(out, "cache", None) or getattr(out, "past_key_values", None)
        if cache is None:
            raise PlainModelFails("it returns no cache")
        logits: Tensor = run(model, {**later, name: cache}, use_cache=True).logits
        after(later["input_ids"].shape[1])
    return logits


def training(model: Any, reducer: Reducer, checkpointing: bool) -> float:
    """The loss and a gradient: output at full length, against the loss of the masked forward's own logits."""
    inputs = ragged(model, "right")
    real = inputs["attention_mask"].bool()
    last = real & (real.long().flip(1).cumsum(1).flip(1) <= 3)
    labels = inputs["input_ids"].masked_fill(~last, -100)
    weight = every_model.decoder(model).layers[0].parameters()
    few = [p for p in weight if p.ndim > 1][:1]
    found = []
    model.train()
    try:
        if checkpointing:
            model.gradient_checkpointing_enable()
        plain(model, {**inputs, "labels": labels}, use_cache=False)
        for output in ("expand", "compact"):
            with attach(model, reducer, output=output) as attached:
                loss = model(**fresh(inputs), labels=labels, use_cache=False).loss
                keep = attached.last.mask
            found.append((loss.detach(), torch.autograd.grad(loss, few)[0]))
        with hiding(model, keep):
            logits = plain(model, inputs, use_cache=False).logits
        target = labels[:, 1:].masked_fill(~keep[:, 1:], -100)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2).float(), target, ignore_index=-100)
        found.append((loss.detach(), torch.autograd.grad(loss, few)[0]))
    finally:
        if checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()
    (loss, gradient), others = found[-1], found[:-1]
    assert bool(gradient.any()), "no gradient"
    return max(
        max(float((a - loss).abs() / loss.abs()), float((g - gradient).abs().max() / gradient.abs().max()))
        for a, g in others
    )


RANDOM = Random(keep=KEEP, layer=K)
SIMILAR = DART(keep=KEEP, layer=K, image_pivots=2, text_pivots=2)
LAWS: dict[str, Callable[[Any], float]] = {
    "keep-all, left padding": partial(keep_all, side="left"),
    "keep-all, right padding": partial(keep_all, side="right"),
    "reduced, left padding": partial(reduced, reducer=RANDOM, side="left"),
    "reduced, right padding": partial(reduced, reducer=RANDOM, side="right"),
    "reduced, DART": partial(reduced, reducer=SIMILAR, side="left"),
    "DART, left = right = no padding": partial(same_choice, reducer=SIMILAR),
    "reduced, prefill with a cache": partial(reduced, reducer=RANDOM, side="left", use_cache=True),
    "generation": partial(generation, reducer=RANDOM),
    "second turn, keep-all": partial(second_turn, reducer=None, image=False),
    "second turn": partial(second_turn, reducer=RANDOM, image=False),
    "second turn with an image, keep-all": partial(second_turn, reducer=None, image=True),
    "second turn with an image": partial(second_turn, reducer=RANDOM, image=True),
    "training": partial(training, reducer=RANDOM, checkpointing=False),
    "training, gradient checkpointing": partial(training, reducer=RANDOM, checkpointing=True),
}


def evaluate(law: str, kernel: str, model: Any, test: Callable[[Any], float]) -> Finding:
    try:
        number = test(model)
    except PlainModelFails as error:
        return Finding(law, kernel, "fails", note=first_line(error))
    except Exception as error:
        verdict: Verdict = "refused" if is_refusal(error) else "crashes"
        return Finding(law, kernel, verdict, note=first_line(error))
    allowed = TOLERANCES.get(model.config.model_type, RECURRENT_TOLERANCE if is_recurrent(model) else TOLERANCE)
    return Finding(law, kernel, "holds" if number < allowed else "wrong", number)


def is_refusal(error: Exception) -> bool:
    """Raised by the package itself, as an error that names a reason."""
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, NotImplementedError | ValueError) and "/dart_train/" in where.replace("\\", "/")


def first_line(error: Exception) -> str:
    name = "" if isinstance(error, NotImplementedError | PlainModelFails) else f"{type(error).__name__}: "
    return f"{name}{error}".split("\n")[0][:300]


def survey(
    name: str, kernels: Sequence[str] = KERNELS, laws: Sequence[str] | None = None, most: int = 2
) -> list[Finding]:
    """Each law for each kernel that the model has, at most so many of them. A model that the reduction cannot be
    attached to has one finding."""
    found: list[Finding] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skeleton = every_model.build(name, meta=True)
        try:
            attach(skeleton, RANDOM).remove()
        except (NotImplementedError, ValueError) as refusal:
            return [Finding("attach", "", "refused", note=first_line(refusal))]
        for kernel in [kernel for kernel in kernels if kernel in every_model.kernels(name)][:most]:
            model = every_model.build(name, kernel)
            try:
                find_form(model)
            except PlainModelFails as error:
                return [Finding("plain forward", kernel, "fails", note=str(error)[:600])]
            for law in laws or LAWS:
                found.append(evaluate(law, kernel, model, LAWS[law]))
            if (laws is None or "window" in laws) and every_model.has_window(name):
                model = every_model.build(name, kernel, window=SMALL_WINDOW)
                for law in ("reduced, right padding", "generation"):
                    found.append(evaluate(f"small window: {law}", kernel, model, LAWS[law]))
    return found


def worst(findings: Sequence[Finding]) -> Verdict:
    """The verdict on a class. Some laws may be refused in a class that holds."""
    verdicts = {finding.verdict for finding in findings}
    if verdicts & {"wrong", "crashes"}:
        return "wrong" if "wrong" in verdicts else "crashes"
    essential = {f.verdict for f in findings if f.law.startswith("reduced, ") or f.law == "attach"}
    return "holds" if essential == {"holds"} else "refused" if "refused" in essential else "fails"


# the table ---------------------------------------------------------------------------------------------------------

# Column of the table -> the laws that it stands for.
COLUMNS = {
    "train": ("training",),
    "generate": ("generation",),
    "cached chat": ("second turn with an image",),
}
MARKS: dict[Verdict, str] = {"holds": "yes", "refused": "refused", "fails": "-", "crashes": "no", "wrong": "no"}


def verdict_of(findings: Sequence[Finding], laws: Sequence[str]) -> str:
    """The least favourable one of some laws over the kernels."""
    order: tuple[Verdict, ...] = ("wrong", "crashes", "refused", "fails", "holds")
    found = {finding.verdict for finding in findings if finding.law in laws}
    return next((MARKS[verdict] for verdict in order if verdict in found), "-")


def table(results: Mapping[str, Sequence[Finding]]) -> str:
    """Markdown: what holds for each class, and why the others are refused."""
    families = every_model.names()
    holding = {name: found for name, found in results.items() if worst(found) == "holds"}
    rest = {name: found for name, found in results.items() if name not in holding}
    lines = [
        "# Image models of transformers",
        "",
        "Written by `python -m tests.zoo.survey --markdown`, on tiny models with random weights, with transformers "
        f"{transformers.__version__}.",
        "",
        f"{len(holding)} of {len(results)} classes and variants hold. The others are refused with a reason, or do not "
        "run by themselves. A variant is `model type+what differs`.",
        "",
        "- train, generate, cached chat (an image in a second turn): yes, refused with a message, or `-` where the "
        "model itself does not run the test's inputs.",
        "- video, grid: `show` of videos; `show`, grid methods, and fewer pixels where the family's processor allows.",
        "- tower: tested with the family's own vision tower and processor; elsewhere the tower's output is given. "
        "`torchvision`: where that package is installed, which the processor needs.",
        "- tested at: attention kernels, and how many laws hold of those that the model itself runs.",
        "",
        "| model type | class | train | generate | cached chat | video | grid | tower | tested at |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in holding.items():
        base = name.partition("+")[0]
        family = find_family(base)
        marks = [verdict_of(found, laws) for laws in COLUMNS.values()]
        marks += [yes(family.video_geometry), yes(family.geometry is not None), tower_of(base), tested_at(found)]
        lines.append(f"| {name} | {families[name].__name__} | {' | '.join(marks)} |")
    lines += ["", "| model type | class | reason |", "|---|---|---|"]
    for name, found in rest.items():
        first = next(finding for finding in found if finding.verdict != "holds")
        reason = first.note.removeprefix(f"{families[name].__name__}: the reduction cannot be attached")
        if first.verdict == "fails":
            failure = reason.removeprefix("list: ").split(";")[0]
            reason = f"not tested: the model itself fails ({failure}){complete_note(name, found)}"
        lines.append(f"| {name} | {families[name].__name__} | {reason.strip(':; ').replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def yes(value: bool) -> str:
    return "yes" if value else "-"


def tower_of(name: str) -> str:
    if name in FAMILIES or name in HYBRIDS or name == "lfm2_vl":  # a batch of its own, in tests/zoo/lfm2.py
        return "yes"
    more = MORE_FAMILIES.get(name)
    return "-" if more is None else more.needs() or "yes"


def tested_at(findings: Sequence[Finding]) -> str:
    """Laws that hold, of those that were tested, for each kernel."""
    tested = [finding for finding in findings if finding.verdict != "fails"]
    parts = []
    for kernel in dict.fromkeys(finding.kernel for finding in tested):
        verdicts = [finding.verdict for finding in tested if finding.kernel == kernel]
        parts.append(f"{kernel} {verdicts.count('holds')}/{len(verdicts)}")
    return ", ".join(parts)


def survey_or_reason(name: str) -> list[Finding]:
    try:
        found = survey(name)
    except Exception as error:
        found = [Finding("build", "", "fails", note=first_line(error))]
    print(f"{name:26} {worst(found):8} {tested_at(found)}", file=sys.stderr, flush=True)
    return found


def complete_note(name: str, findings: Sequence[Finding]) -> str:
    """Of a class whose own forward lacks an attribute: whether the laws hold once it has it."""
    if not name.startswith("llama4") or worst(findings) != "fails":
        return ""
    every_model.complete_output(name)
    found = survey(name)
    return f"; with that attribute added, {tested_at(found)} laws hold" if worst(found) == "holds" else ""


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--markdown"]:
        print(table({name: survey_or_reason(name) for name in arguments[1:] or every_model.names()}), end="")
        return
    chosen = arguments or list(every_model.names())
    for name in chosen:
        try:
            findings = survey(name)
        except Exception as error:
            print(f"{name:26} not built: {first_line(error)}", flush=True)
            continue
        if arguments:
            print(name, "\n" + "\n".join(map(str, findings)), flush=True)
        else:
            bad = [f for f in findings if f.verdict not in ("holds",)]
            print(f"{name:26} {worst(findings):8} {len(findings) - len(bad)}/{len(findings)}", flush=True)
            for f in bad:
                print(f"      {f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
