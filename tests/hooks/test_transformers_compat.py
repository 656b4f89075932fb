"""The installed transformers, 5.23 or 5.24, is called by the names that it knows, and another version is reported."""

from __future__ import annotations

import sys
import warnings
from dataclasses import make_dataclass
from importlib import metadata
from typing import Any

import pytest
import torch
import transformers.utils.generic

from dart_train import DART, attach
from dart_train.common import environment
from dart_train.common.environment import version_note
from dart_train.hooks.transformers_compat import CACHE_NAMES, cache_argument, cache_in_output, cache_of
from tests.laws.cases import batch_of, model_of


def takes_new(hidden: Any, cache: Any = None) -> None: ...


def takes_old(hidden: Any, past_key_values: Any = None) -> None: ...


def takes_any(hidden: Any, **kwargs: Any) -> None: ...


def test_cache_argument_follows_the_signature() -> None:
    assert cache_argument(takes_new) == "cache"
    assert cache_argument(takes_old) == "past_key_values"
    assert cache_argument(takes_any) in CACHE_NAMES


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_cache_is_found_under_both_names(name: str) -> None:
    cache = object()
    assert cache_of({"input_ids": 1, name: cache}) is cache
    assert cache_of(dict.fromkeys(CACHE_NAMES)) is None
    assert cache_in_output(make_dataclass("Output", [(name, object)])(cache)) is cache


def test_forward_and_generate_raise_no_future_warning() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1,))
    with warnings.catch_warnings(), attach(model, DART(keep=8)) as attached, torch.no_grad():
        warnings.simplefilter("error", FutureWarning)
        model(**batch)
        model.generate(**batch, do_sample=False, max_new_tokens=2)
        assert attached.last is not None and attached.last.visual_after == (8,)


def test_training_logs_no_deprecated_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers logs these once a process, and no warning filter sees them."""
    logged: list[str] = []
    monkeypatch.setattr(transformers.utils.generic.logger, "warning_once", lambda *said, **more: logged.append(said[0]))
    model, batch = model_of("llava"), batch_of("llava", (1,))
    try:
        with attach(model, DART(keep=8)):
            model.train()(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    finally:
        model.eval().zero_grad()  # other tests have the same model
    assert not logged


@pytest.fixture
def another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "5.99.1" if name == "transformers" else installed(name))


@pytest.mark.usefixtures("another_version")
def test_a_version_outside_the_tested_range_is_reported() -> None:
    note = version_note()
    assert note is not None and "5.99.1" in note and "pip install" in note


@pytest.mark.usefixtures("another_version")
def test_missing_keys_name_the_version_as_the_likely_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was on 5.24: the observer handed over under a name that the attention does not read."""
    model, batch = model_of("llava"), batch_of("llava", (1,))
    recording = sys.modules["dart_train.hooks.selection_inputs"]
    monkeypatch.setattr(recording, "cache_argument", lambda function: "renamed_cache")
    with attach(model, DART(keep=8)), torch.no_grad(), pytest.raises(RuntimeError, match=r"5\.99\.1"):
        model(**batch)


def test_installed_version_is_in_the_tested_range() -> None:
    assert version_note() is None, (
        "run the laws on this release, then widen TESTED_TRANSFORMERS in dart_train/common/environment.py"
    )
    assert environment.TESTED_TRANSFORMERS[0] <= environment.TESTED_TRANSFORMERS[1]
