"""`export --for vllm`: is the reduction one that the engine can apply, and what is written for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints import ResolvedModel
from ..checkpoints.locate import ADAPTER
from ..models.loading import build_meta_model
from ..reduction import Reducer
from ..reduction.servable import describe_reducer, nearest_servable, why_not_servable
from ..vllm_plugin.served_reduction import UNTRAINED
from ..vllm_plugin.vllm_compat import FAMILIES

ENGINES = ("vllm",)


def stages_for_engine(engine: str, found: ResolvedModel, adapter_only: bool, convert: bool) -> list[Reducer]:
    """The stages to write. Raises ValueError with everything that keeps the engine from serving the export."""
    if engine not in ENGINES:
        raise ValueError(f"for_engine={engine!r}: expected one of {', '.join(ENGINES)}")
    stages, problems = list(found.trained or []), []
    [architecture, *_] = build_meta_model(found.source).config.architectures or ["a model without an architecture"]
    if stages and architecture not in FAMILIES:
        problems.append(
            f"the reduction of {architecture} is not served by vLLM; it is for {', '.join(FAMILIES)}. "
            "python -m dart_train serve serves it as it was trained"
        )
    if found.trained_tower is not None:
        problems.append("the model has a stage in the vision tower, which vLLM does not run")
    if adapter_only and (saved := _modules_to_save(found.location.folder)):
        problems.append(f"vLLM loads no adapter with fully trained modules ({saved}); leave out --adapter-only")
    if (reasons := why_not_servable(stages)) and not convert:
        problems.append(
            f"vLLM cannot apply the reduction that the model was trained with: {'; '.join(reasons)}. Nearest setting "
            f"that it can apply: {describe_reducer(nearest_servable(stages))}. Train with it, or --convert writes it "
            "for the model as it is; python -m dart_train serve serves the reduction as it was trained"
        )
    if problems:
        raise ValueError("\n".join(problems))
    return [nearest_servable(stages)] if reasons else stages


def _modules_to_save(folder: Path) -> str:
    content = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    return ", ".join(content.get("modules_to_save") or [])


def append_serving_section(card: Path, name: str, adapter_only: bool, stages: Sequence[Reducer], trained: bool) -> None:
    """How to start the engine, at the end of the model card. trained: the stages are those of the training."""
    command = f"vllm serve {name}"
    if adapter_only:
        command = f"vllm serve BASE_MODEL --enable-lora --lora-modules {name}={name}"
    overrides = {}
    if adapter_only and stages:
        overrides["dart_reducer"] = name
    if not trained:
        overrides[UNTRAINED] = "true"
    if overrides:
        content = ", ".join(
            f'"{key}": {value}' if value == "true" else f'"{key}": "{value}"' for key, value in overrides.items()
        )
        command += f" --hf-overrides '{{{content}}}'"
    lines = [
        "## Serve with vLLM",
        "",
        "```bash",
        "pip install --no-deps dart-train  # next to vllm 0.32",
        command,
        "```",
    ]
    if stages:
        lines += ["", f"Each image goes through `{describe_reducer(stages[0])}` before the language model."]
    if not trained:
        lines += [
            "The model was trained with another reduction, so the engine serves this one only with `dart_untrained`."
        ]
    with card.open("a", encoding="utf-8") as stream:
        stream.write("\n" + "\n".join(lines) + "\n")
