"""What the cache of the hub has is read without a request to the hub; what is nowhere is reported at once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from dart_train.common.hub import cached_first, offline, require_hub
from dart_train.reduction import DART
from tests.fixtures.run_scene import ROOT, free_port, make_recipe
from tests.zoo import save_folder

COMMIT = "0" * 40


class CountingHub:
    """A server that accepts connections, counts them, and closes them."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()


@pytest.fixture
def hub() -> Iterator[CountingHub]:
    server = CountingHub()
    yield server
    server.socket.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HF_HOME with a model, an export with its reduction, and an adapter, as downloads are stored, and the scene of a
    recipe that names the model by its id."""
    home, scene = tmp_path_factory.mktemp("hf"), tmp_path_factory.mktemp("scene")
    recipe = make_recipe(scene)
    for name in ("tiny", "export", "adapter"):
        repository = home / "hub" / f"models--owner--{name}"
        if name != "adapter":
            shutil.copytree(scene / "llava", repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
    reducer = {"format": 1, "stages": [DART(keep=8, layer=2).to_dict()]}
    (home / "hub" / "models--owner--export" / "snapshots" / COMMIT / "reducer.json").write_text(json.dumps(reducer))
    recipe.write_text(recipe.read_text().replace(str(scene / "llava"), "owner/tiny"))
    (home / "recipe").symlink_to(recipe)
    return home


def run_script(home: Path, endpoint: str, script: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    environment.pop("HF_HUB_OFFLINE", None)
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment.pop("HF_DATASETS_CACHE", None)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=600, check=False)


LOADS = """
import json, shutil, sys
from pathlib import Path
import datasets
from peft import LoraConfig, get_peft_model
import dart_train
from dart_train.cli.main import main
from dart_train.common.hub import offline
from dart_train.data.sources import SourceSpec, open_source
from dart_train.models.loading import WeightsSource, build_meta_model, read_config, read_model

build_meta_model(WeightsSource("owner/tiny"))
model = read_model(WeightsSource("owner/tiny"), "auto", "eager")
snapshots = Path("hub/models--owner--adapter/snapshots")
with offline():
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(snapshots / ("0" * 40))
read_model(WeightsSource("owner/tiny", adapter="owner/adapter"), "auto", "eager")
dart_train.load_processor("owner/tiny")
assert dart_train.load("owner/export", device="cpu").attached is not None

rows = Path("rows.jsonl")
rows.write_text('{"a": 1}')
made = Path(datasets.load_dataset("json", data_files=str(rows), split="train").cache_files[0]["filename"])
stored = Path(datasets.config.HF_DATASETS_CACHE) / "owner___rows" / "default" / "0.0.0" / made.parent.name
shutil.copytree(made.parent, stored)
(stored / made.name).rename(stored / "rows-train.arrow")
assert len(open_source(SourceSpec("owner/rows")).rows) == 1

assert main(["plan", "recipe", "--no-timing"]) == 0
assert main(["train", "recipe", "train.max_steps=1"]) == 0
"""


def test_cached_models_adapters_rows_and_recipes_never_ask_the_hub(home: Path, hub: CountingHub) -> None:
    """Training on a model by its id included: peft would ask for its configuration at each checkpoint."""
    done = run_script(home, hub.url, LOADS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.connections == 0


NOWHERE = """
import sys
import dart_train
from dart_train.cli.main import main
from dart_train.data.sources import SourceSpec, open_source
from dart_train.models.loading import read_config

calls = {
    "load": lambda: dart_train.load("owner/nowhere"),
    "processor": lambda: dart_train.load_processor("owner/nowhere"),
    "config": lambda: read_config("owner/nowhere"),
    "rows": lambda: open_source(SourceSpec("owner/nowhere")),
    "streamed": lambda: open_source(SourceSpec("owner/nowhere", streaming=True)),
}
for name, call in calls.items():
    try:
        call()
    except ValueError as error:
        print(name, str(error).replace(chr(10), " "))
image = ["owner/nowhere", "--image", "none.png"]
for command in (
    ["check", "owner/nowhere"],
    ["plan", "recipe", "model.path=owner/nowhere"],
    ["show", *image, "--question", "What?"],
    ["chat", *image, "What?"],
):
    print("exit", command[0], main(command))
assert dart_train.load("owner/tiny", reducer="dart", keep=8, device="cpu").attached is not None
print("cached loaded")
"""


@pytest.fixture(scope="module")
def without_network(home: Path) -> subprocess.CompletedProcess[str]:
    return run_script(home, f"http://127.0.0.1:{free_port()}", NOWHERE)


def test_what_is_nowhere_is_reported_without_retrying(without_network: subprocess.CompletedProcess[str]) -> None:
    done = without_network
    assert "exit chat" in done.stdout, done.stderr[-3000:]
    reports = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line and "exit" not in line)
    for name in ("load", "processor", "config", "rows", "streamed"):
        assert "'owner/nowhere'" in reports[name] and "does not answer (no network?)" in reports[name], name
    for command in ("check", "plan", "show", "chat"):
        assert f"exit {command} 2" in done.stdout
    assert "Retrying" not in done.stderr and "Traceback" not in done.stderr


def test_a_cached_model_without_a_reduction_loads_without_a_network(
    without_network: subprocess.CompletedProcess[str],
) -> None:
    """Whether the hub has a reduction that the cache lacks would be asked if it answered."""
    done = without_network
    assert done.returncode == 0 and done.stdout.endswith("cached loaded\n"), done.stderr[-3000:]


def test_offline_restores_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(RuntimeError), offline():
        assert constants.is_offline_mode() and os.environ["HF_HUB_OFFLINE"] == "1"
        raise RuntimeError
    assert not constants.is_offline_mode() and "HF_HUB_OFFLINE" not in os.environ


def test_an_error_of_a_cached_model_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the reason is not hidden by advice to download what is there."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    save_folder("llava", tmp_path / "models--owner--tiny" / "snapshots" / COMMIT)
    (tmp_path / "models--owner--tiny" / "refs").mkdir()
    (tmp_path / "models--owner--tiny" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))

    def load() -> None:
        raise ValueError("the model type is not known")

    with pytest.raises(ValueError, match="the model type is not known"):
        cached_first(load, "owner/tiny")
    with pytest.raises(ValueError, match="was never downloaded to"):
        require_hub("owner/other")
