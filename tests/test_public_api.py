"""What users rely on, frozen in `fixtures/public_api.json`: names, signatures, commands, recipes, exit codes, files.

Things may be added; what is listed there must stay. Nothing here knows where in the package anything is defined.
After an addition on purpose: `python -m tests.test_public_api` rewrites the file; read its diff before committing."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import dart_train

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
FROZEN = FIXTURES / "public_api.json"
INTERNAL = {"Attached": ("engine",), "Kept": ("of",), "View": ("seen",)}  # public by spelling only
COMMANDS = ("train", "compare", "plan", "check", "bench", "data", "export", "show", "chat", "base", "env")
BENCHES = ("select", "step", "prefill", "tower", "decode", "distill", "data", "ranks", "all")
HELP = [[name] for name in COMMANDS] + [["data", "check"]] + [["bench", name] for name in BENCHES]
SHORT = ["train.max_steps=2", "train.save_steps=2", "train.eval_steps=2"]
CALLS: dict[str, dict[str, Any]] = {
    "help": {"argv": ["--help"]},
    "no such command": {"argv": ["nothing"]},
    "no such option": {"argv": ["export", "run", "--nothing"]},
    "no such recipe": {"argv": ["train", "nothing.yaml", "--local_rank=0"]},
    "wrong recipe": {"argv": ["train", "recipe.yaml", "train.nothing=1", "train.max_steps=none"]},
    "wrong comparison": {"argv": ["compare", "recipe.yaml", "compare.budgets=[0.25, none]", "--local_rank=0"]},
    "dry run": {"argv": ["train", "recipe.yaml", "--dry-run", "train.output_dir=new"]},
    "train": {"argv": ["train", "recipe.yaml", "train.output_dir=new", "train.overlay_steps=2", *SHORT]},
    "changed recipe": {"argv": ["train", "recipe.yaml", "train.output_dir=new", *SHORT, "train.learning_rate=1"]},
    "stopped": {
        "argv": ["train", "recipe.yaml", "train.output_dir=stopped", "train.max_steps=100000"],
        "sigterm_at": "stopped/metrics.jsonl",
    },
    "bad step": {
        "argv": ["train", "recipe.yaml", "train.output_dir=bad", "train.learning_rate=1e30", "train.on_nan=stop"]
    },
    "checkpoint not written": {
        "argv": ["train", "recipe.yaml", "train.output_dir=unsaved", *SHORT],
        "largest_file": 20_000,
    },
    "compare": {"argv": ["compare", "recipe.yaml", "compare.timing=true", "compare.timing_repeats=1"]},
    "export": {"argv": ["export", "new", "--out", "out"]},
    "export onto something": {"argv": ["export", "run", "--out", "images"]},
    "data check": {"argv": ["data", "check", "recipe.yaml", "--workers", "1", "--out", ".", "--quiet"]},
    "data check of bad rows": {
        "argv": ["data", "check", "--rows", "bad.json", "--images", "images", "--workers", "1", "--out", "bad_rows"]
    },
    "plan": {"argv": ["plan", "recipe.yaml", "--no-timing", "--out", "planned"]},
    "show": {"argv": ["show", "exported", "--image", "images/0-0.png", "--question", "what", "--out", "page.png"]},
    "chat": {"argv": ["chat", "exported", "what", "--image", "images/0-0.png", "--max-new-tokens", "2"]},
    "env": {"argv": ["env", "--json"]},
    "base": {"argv": ["base", "recipe of the base.yaml", "nothing=1"]},
}
Snapshot = dict[str, Any]


def observe(folder: Path) -> Snapshot:
    """All that is frozen, as it is now. `folder`: an empty one to work in."""
    work = folder / "work"
    results = _run(work)
    return {
        "names": sorted(dart_train.__all__),
        "reducers": {name: type(made).__name__ for name, made in _registered().items()},
        "signatures": {
            name: _signature(getattr(dart_train, name)) for name in dart_train.__all__ if name != "REDUCERS"
        },
        "members": {name: _members(name) for name in dart_train.__all__ if inspect.isclass(getattr(dart_train, name))},
        "configurations": {name: made.to_dict() for name, made in _registered().items()},
        "commands": {" ".join(argv): results[" ".join([*argv, "--help"])]["options"] for argv in HELP},
        "exit codes": {name: results[name]["code"] for name in CALLS},
        "problems": {name: _problems(results[name]) for name in ("wrong recipe", "wrong comparison", "base")},
        "recipes": {file.name: _recipe(file) for file in sorted((ROOT / "recipes").glob("*.yaml"))},
        "files": dict(_files(work)),
        "keys": dict(_keys(work, results)),
    }


def _run(work: Path) -> Snapshot:
    shutil.copytree(FIXTURES / "written_before", work)
    shutil.copy(ROOT / "recipes" / "tiny_base.yaml", work / "recipe of the base.yaml")
    (work / "bad.json").write_text(json.dumps([{"id": "1", "image": "gone.png", "conversations": []}]))
    calls = [{"name": name, **call} for name, call in CALLS.items()]
    calls += [{"name": " ".join([*argv, "--help"]), "argv": [*argv, "--help"]} for argv in HELP]
    (work / "calls.json").write_text(json.dumps(calls))
    script = [sys.executable, str(FIXTURES / "run_commands.py"), "calls.json", "results.json"]
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
    subprocess.run(script, cwd=work, env={**os.environ, **settings}, check=True, timeout=300)
    results: Snapshot = json.loads((work / "results.json").read_text())
    return results


def _registered() -> dict[str, Any]:
    return {name: dart_train.from_config({"method": name}) for name in sorted(dart_train.REDUCERS)}


def _signature(thing: Any) -> list[dict[str, str]]:
    """Without annotations: classes may get other names."""
    return [
        {"name": each.name, "kind": each.kind.name, "default": repr(each.default)}
        for each in inspect.signature(thing).parameters.values()
    ]


def _members(name: str) -> dict[str, list[str]]:
    """{method, property or field: names of keyword-only parameters and kinds of the others}."""
    kind, described = getattr(dart_train, name), dict[str, list[str]]()
    fields = [each.name for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    for member in [*fields, *(each for each in dir(kind) if not each.startswith("_"))]:
        if member in INTERNAL.get(name, ()):
            continue
        value = inspect.getattr_static(kind, member, None)
        described[member] = [_shape(p) for p in inspect.signature(value).parameters.values()] if callable(value) else []
    return dict(sorted(described.items()))


def _shape(parameter: inspect.Parameter) -> str:
    named = parameter.kind is inspect.Parameter.KEYWORD_ONLY
    optional = "" if parameter.default is inspect.Parameter.empty else " optional"
    return (parameter.name if named else parameter.kind.name) + optional


def _problems(result: Snapshot) -> list[str]:
    """The keys of a recipe that were refused."""
    return sorted(re.findall(r"^  ([\w.]+): ", result["err"], re.MULTILINE))


def _recipe(file: Path) -> Any:
    """With every default written out. The base model's recipe, which has its own command, is read unchanged."""
    plain = yaml.safe_load(file.read_text())
    if "stages" in plain:
        return plain
    for module in ("dart_train.config", "dart_train.recipe"):
        try:
            return json.loads(json.dumps(importlib.import_module(module).load_recipe(file).to_dict()))
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    raise AssertionError("no module reads recipes")


def _files(work: Path) -> Iterator[tuple[str, list[str]]]:
    for name in ("new", "stopped", "bad", "compare", "out", "planned"):
        folder = work / {"compare": "comparison"}.get(name, name)
        found = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        # The signal comes at whatever step.
        yield (
            name,
            sorted(re.sub(r"checkpoint-\d+", "checkpoint-N", file) if name == "stopped" else file for file in found),
        )
    yield "work", sorted(name for name in ("page.png", "check.json", "check_rows.jsonl") if (work / name).is_file())


def _keys(work: Path, results: Snapshot) -> Iterator[tuple[str, Any]]:
    checkpoint, run, out, compared = (work / name for name in ("new/checkpoint-2", "new", "out", "comparison"))
    for file in ("complete.json", "versions.json", "base.json", "reducer.json"):
        yield f"checkpoint: {file}", _names(_json(checkpoint / file))
    yield "run: recipe.yaml", yaml.safe_load(_text(run / "recipe.yaml"))
    metrics = _lines(run / "metrics.jsonl")
    yield "run: metrics.jsonl, steps", _merged([line for line in metrics if "loss" in line])
    yield "run: metrics.jsonl, validation", _merged([line for line in metrics if "eval_loss" in line])
    yield "run: bad_steps.jsonl", _merged(_lines(work / "bad" / "bad_steps.jsonl"))
    yield "export: provenance.json", _names(_json(out / "provenance.json"))
    yield "compare: results.jsonl", _merged(_lines(compared / "results.jsonl"))
    yield "compare: cost.json", _names(_json(compared / "cost.json"))
    for table in ("table.csv", "pairs.csv", "cost.csv"):
        yield f"compare: {table}", next(csv.reader(_text(compared / table).splitlines()), [])
    yield "data check: check.json", _names(_json(work / "check.json"))
    yield "data check: check_rows.jsonl", _merged(_lines(work / "bad_rows" / "check_rows.jsonl"))
    yield "plan: plan.json", _names(_json(work / "planned" / "plan.json"))
    yield "env", _names({**json.loads(results["env"]["out"] or "{}"), "variables": None})  # those that are set


def _text(file: Path) -> str:
    """Empty where a command did not write it: the keys are gone then."""
    return file.read_text() if file.is_file() else ""


def _json(file: Path) -> Any:
    return json.loads(_text(file) or "{}")


def _lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in _text(file).splitlines()]


def _merged(lines: list[Any]) -> Any:
    return _names({key: value for line in lines for key, value in line.items()})


def _names(value: Any) -> Any:
    """The keys of JSON without its values; of a list one element that has the keys of all."""
    if isinstance(value, dict):
        return {key: _names(inner) for key, inner in value.items()}
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return [_merged(value)]
    return None


def missing(frozen: Any, now: Any, path: str = "") -> Iterator[str]:
    """What is frozen and no longer so. More keys and more names are no loss."""
    if isinstance(frozen, dict) and isinstance(now, dict):
        for key, value in frozen.items():
            if key not in now:
                yield f"{path}/{key}: gone"
            else:
                yield from missing(value, now[key], f"{path}/{key}")
    elif isinstance(frozen, list) and isinstance(now, list) and all(isinstance(each, str) for each in frozen):
        yield from (f"{path}: {name} is gone" for name in frozen if name not in now)
    elif frozen is not None and frozen != now:
        yield f"{path}: {frozen!r} became {now!r}"


@pytest.fixture(scope="module")
def frozen() -> Snapshot:
    content: Snapshot = json.loads(FROZEN.read_text())
    return content


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    observed = observe(tmp_path_factory.mktemp("api"))
    plain: Snapshot = json.loads(json.dumps(observed))
    return plain


@pytest.mark.parametrize("part", ["names", "reducers", "members", "configurations", "commands", "files", "keys"])
def test_nothing_public_is_gone(frozen: Snapshot, now: Snapshot, part: str) -> None:
    lost = list(missing(frozen[part], now[part]))
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize("part", ["exit codes", "recipes"])
def test_exit_codes_and_recipe_defaults_are_kept(frozen: Snapshot, now: Snapshot, part: str) -> None:
    lost = list(missing(frozen[part], now[part]))
    assert not lost, "\n".join(lost)


def test_wrong_keys_are_refused_together(frozen: Snapshot, now: Snapshot) -> None:
    assert now["problems"] == frozen["problems"]


def test_signatures_accept_what_they_accepted(frozen: Snapshot, now: Snapshot) -> None:
    """Parameters keep name, kind, place and default; new ones are optional and come after those of their kind."""
    for name, before in frozen["signatures"].items():
        if name in INTERNAL:
            continue
        after = now["signatures"][name]
        for kind in {each["kind"] for each in before}:
            old, new = ([each for each in side if each["kind"] == kind] for side in (before, after))
            if kind == "KEYWORD_ONLY":
                assert all(each in new for each in old), name
            else:
                assert new[: len(old)] == old, name
        added = [each for each in after if each["name"] not in {each["name"] for each in before}]
        assert all(each["default"] != repr(inspect.Parameter.empty) for each in added), name


def test_missing_names_would_be_found() -> None:
    before = {"a": ["x", "y"], "b": {"c": 1}}
    assert list(missing(before, {"a": ["y", "x", "z"], "b": {"c": 1, "d": 2}, "e": 0})) == []
    assert list(missing(before, {"a": ["x"], "b": {"c": 2}})) == ["/a: y is gone", "/b/c: 1 became 2"]
    assert list(missing(before, {"b": {}})) == ["/a: gone", "/b/c: gone"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        FROZEN.write_text(json.dumps(observe(Path(place)), indent=1, sort_keys=True) + "\n")
