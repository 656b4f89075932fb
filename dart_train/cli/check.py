"""`python -m dart_train check PATH`: the laws, held against a model folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import AutoModelForImageTextToText

from ..conformance import check, default_reducers
from ..models.processors import load_processor
from ..reduction import Reducer, from_config

DTYPES = ("auto", "float32", "bfloat16", "float16")


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    reducers = _reducers(options)  # refused before a model is loaded
    processor = load_processor(options.path)
    model = AutoModelForImageTextToText.from_pretrained(
        options.path, dtype=options.dtype, attn_implementation=options.attn
    ).to(options.device)
    if options.layer is None:
        layer = default_reducers(model)[0].layer
        reducers = [replace(reducer, layer=layer) for reducer in reducers]
    return 0 if check(model, processor, reducers).ok else 1


def _reducers(options: argparse.Namespace) -> list[Reducer]:
    layer = {} if options.layer is None else {"layer": options.layer}
    return [from_config({"method": name, "keep": options.keep, **layer}) for name in options.method]


def _budget(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dart_train check", description=__doc__)
    parser.add_argument("path", help="folder or hub id of the model")
    parser.add_argument("--method", nargs="+", default=["dart", "random"], help="what to check (dart random)")
    parser.add_argument("--keep", type=_budget, default=0.25, help="visual tokens: 64, or 0.25 of them")
    parser.add_argument("--layer", type=int, help="first layer on the short sequence (2, or the middle)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--attn", help="attn_implementation: sdpa, eager, flash_attention_2")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser
