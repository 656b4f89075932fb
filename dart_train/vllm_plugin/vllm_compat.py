"""The private seams of vLLM that the plug-in uses. Read in vLLM 0.32.0.

| seam                                        | what for                                                            |
| ------------------------------------------- | ------------------------------------------------------------------- |
| vllm.config.model.get_config                | a model with a reducer.json is served by our classes                |
| models.config.MODELS_CONFIG_MAP             | settings are checked; M-RoPE and the recomputation are switched on  |
| MultiModalConfig.video_pruning_rate         | its value > 0 makes the runner call `recompute_mrope_positions`     |
| CPUModelRunner.load_model                   | forgets the flag for it, which GPUModelRunner.load_model sets       |
| SupportsMultiModalPruning                   | extra columns of the encoder's output carry positions               |
| BaseMultiModalProcessor._apply_hf_...       | see `processing.py`                                                 |
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..reduction.reducer_file import REDUCER_FILE, ReducerFile
from .engine_checks import engine_problems, model_problems, raise_if_any, rotary_problem
from .served_reduction import CONFIG_NAME, NO_REDUCTION, REDUCER, ServedReduction, decide

READ_IN = "0.32.0"
_PREFIX = "dart_"
# Architecture: our class, and whether the model has one position a token.
FAMILIES = {
    "LlavaForConditionalGeneration": ("llava:ReducedLlava", True),
    "LlavaNextForConditionalGeneration": ("llava:ReducedLlavaNext", True),
    "Qwen2VLForConditionalGeneration": ("qwen_vl:ReducedQwen2VL", False),
    "Qwen2_5_VLForConditionalGeneration": ("qwen_vl:ReducedQwen25VL", False),
    "Qwen3VLForConditionalGeneration": ("qwen_vl:ReducedQwen3VL", False),
}
_RECOMPUTE_POSITIONS = 0.5  # any rate above 0: no video is pruned by it


def install() -> None:
    """Once a process; calls after the first change nothing."""
    from vllm.config import model as config_module
    from vllm.model_executor.models import config as config_map
    from vllm.model_executor.models.registry import ModelRegistry

    if getattr(config_module.get_config, "of_dart_train", False):
        return
    for architecture, (location, is_linear) in FAMILIES.items():
        ours = our_name(architecture)
        ModelRegistry.register_model(ours, f"{__package__}.{location}")
        config_map.MODELS_CONFIG_MAP[ours] = _make_updater(is_linear)
    config_module.get_config = _with_reduction(config_module.get_config)
    _set_flag_of_cpu_runner()


def our_name(architecture: str) -> str:
    return f"Dart{architecture}"


def _with_reduction(get_config: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's function that reads a model's config. Where the model has a reducer.json, or the operator has given a
    budget, the config gets the reduction and the name of our class."""

    @functools.wraps(get_config)
    def reading(model: Any, trust_remote_code: bool, revision: str | None = None, *args: Any, **kwargs: Any) -> Any:
        overrides = dict(kwargs.pop("hf_overrides_kw", None) or {})
        settings = {name: overrides.pop(name) for name in list(overrides) if name.startswith(_PREFIX)}
        config = get_config(model, trust_remote_code, revision, *args, hf_overrides_kw=overrides, **kwargs)
        served = read_served(str(model), revision, settings)
        if served is None:
            return config
        [architecture, *_] = config.architectures or [type(config).__name__]
        if architecture not in FAMILIES:
            raise ValueError(
                f"{model} has a {REDUCER_FILE}, and the reduction of {architecture} is not served by vLLM; it is for "
                f"{', '.join(FAMILIES)}. To serve it as it was trained: python -m dart_train serve. To serve full "
                f'tokens: --hf-overrides \'{{"{REDUCER}": "{NO_REDUCTION}"}}\''
            )
        setattr(config, CONFIG_NAME, served.to_json())
        config.architectures = [our_name(architecture)]
        return config

    reading.of_dart_train = True  # type: ignore[attr-defined]
    return reading


def read_served(model: str, revision: str | None, settings: dict[str, Any]) -> ServedReduction | None:
    given = settings.get(REDUCER)
    if given is not None and not isinstance(given, str):
        raise ValueError(f"--hf-overrides: {REDUCER}={given!r}: expected a folder, a hub id or {NO_REDUCTION!r}")
    folder = model if given in (None, NO_REDUCTION) else str(given)
    revision = revision if folder == model else None
    path = find_file(folder, REDUCER_FILE, revision)
    if path is None and folder != model:
        raise ValueError(f"--hf-overrides: {REDUCER}={given!r}: there is no {REDUCER_FILE}")
    file = None
    if path is not None:
        try:
            file = ReducerFile.parse(json.loads(path.read_text(encoding="utf-8")), path)
        except ValueError:
            if given != NO_REDUCTION:
                raise
    return decide(file, settings, folder, revision)


def find_file(model: str, name: str, revision: str | None) -> Path | None:
    """A file of a model's folder or hub repository; None: it has none."""
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    from vllm.transformers_utils.repo_utils import try_get_local_file

    found = try_get_local_file(model, name, revision or "main")
    if isinstance(found, Path):
        return found
    if found is not None:  # known not to exist
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except LocalEntryNotFoundError:  # offline, and not in the cache, where the model's other files are
        return None
    except (EntryNotFoundError, HFValidationError, HfHubHTTPError):
        return None


def _make_updater(is_linear: bool) -> type:
    from vllm.model_executor.models.config import VerifyAndUpdateConfig

    class ReductionConfig(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            text_config = model_config.hf_config.get_text_config()
            problems = list(model_problems(model_config))
            served = ServedReduction.of(model_config.hf_config)
            if not is_linear and served is not None and served.renumbers:
                problems.append("positions='compact': this model's positions are those of a grid; use 'original'")
            if is_linear and (problem := rotary_problem(text_config)):
                problems.append(problem)
            raise_if_any(iter(problems))
            if is_linear:
                head = (
                    getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
                )
                text_config.rope_parameters = {
                    **(text_config.rope_parameters or {}),
                    "mrope_section": [head // 2, 0, 0],
                }
            model_config.multimodal_config.video_pruning_rate = _RECOMPUTE_POSITIONS

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            raise_if_any(engine_problems(vllm_config))

    return ReductionConfig


def _set_flag_of_cpu_runner() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load_model = CPUModelRunner.load_model

    @functools.wraps(load_model)
    def loading(self: Any, *args: Any, **kwargs: Any) -> None:
        load_model(self, *args, **kwargs)
        multimodal = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = bool(
            supports_multimodal_pruning(self.get_model())
            and multimodal is not None
            and multimodal.is_multimodal_pruning_enabled()
        )

    CPUModelRunner.load_model = loading
