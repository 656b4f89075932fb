"""`train.push_to_hub`: the model of a finished run, uploaded to the hub."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoints import latest_complete
from ..checkpoints.locate import best_checkpoint
from ..config import Recipe

# What loads the model again. Optimizer state, random states and the record of the rows stay with the run.
UPLOADED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
            "reducer.json", "processor_config.json", "preprocessor_config.json", "tokenizer*", "*.jinja", "*.model",
            "special_tokens_map.json", "vocab.json", "merges.txt", "recipe.yaml", "README.md")  # fmt: skip

log = logging.getLogger(__name__)


def upload_run(recipe: Recipe, make_api: Callable[[], Any] | None = None) -> str | None:
    """Uploads the best checkpoint of the run, or the newest where it was not validated, and returns where it is. A new
    repository is private. None: it could not be uploaded, which is logged; the run itself is finished and stays."""
    repository, run = recipe.train.push_to_hub, Path(recipe.train.output_dir)
    newest = latest_complete(run)[0]
    if repository is None or newest is None:
        return None
    folder = best_checkpoint(newest) or newest
    try:
        api = _default_api() if make_api is None else make_api()
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(UPLOADED),
            commit_message=f"{run.name}, {folder.name}",
        )
    except Exception as error:  # offline, no token, no right to write, a full disk there: each has its own class
        log.warning(
            "%s could not be uploaded to %s: %s. The run is complete; to try again: hf upload %s %s",
            folder, repository, next(iter(str(error).split("\n")), ""), repository, folder,
        )  # fmt: skip
        return None
    return str(url)


def _default_api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()
