"""Which checkpoint a run continues from, and whether it may: nothing in it runs code, its optimizer state fits, and
recipe, base model and versions are those it was written with."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch.serialization import get_unsafe_globals_in_checkpoint

from ..checkpoints import COMPLETE_MARKER, IncompleteCheckpoint, latest_complete, step_of, why_incomplete
from ..common.distributed import RankInfo
from ..common.environment import versions
from ..config import Recipe
from .deepspeed_config import optimizer_sharding
from .enum_pickles import GETATTR, reads_enum_members_only
from .resharding import Sharding, loads_universal, needs_conversion, reshard, why_not_converted
from .run_record import BASE_FILE, RECIPE_FILE, ROWS_FILE, VERSIONS_FILE, base_of

# None of these changes which rows are trained on, or how.
KEYS_THAT_MAY_CHANGE = (
    "compare", "log", "data.validation", "data.workers", "data.allow_urls", "data.follow_links", "data.on_bad_row",
    "data.max_bad_fraction", "model.path", "model.revision", "train.output_dir", "train.epochs", "train.max_steps",
    "train.per_device_eval_batch_size", "train.gradient_checkpointing", "train.save_steps", "train.save_total_limit",
    "train.eval_steps", "train.eval_budgets", "train.resume", "train.logging_steps", "train.overlay_steps",
    "train.early_stopping_patience", "train.early_stopping_threshold", "train.push_to_hub", "train.on_nan",
    "train.on_save_error",
    "train.timeout_seconds", "train.backend",
)  # fmt: skip
_SHAPE_KEYS = ("per_device_batch_size", "gradient_accumulation_steps")  # of train: how a step's rows are divided
_SHARDING_KEYS = ("train.zero_stage", "train.offload_optimizer", "train.offload_parameters")
_PICKLED = {".pt", ".pth", ".bin"}
# Besides tensors and plain Python, which torch itself knows to be safe. All of these hold numbers and names.
_SAFE_GLOBALS = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.zero.offload_config.OffloadDeviceEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
}

_SAFE_ENUMS = frozenset(name for name in _SAFE_GLOBALS if name.endswith("Enum"))

log = logging.getLogger(__name__)


def choose_checkpoint(
    recipe: Recipe, ranks: RankInfo, force: bool = False
) -> tuple[Path | None, list[IncompleteCheckpoint]]:
    """The checkpoint to continue from (None: a fresh start), and the incomplete ones that were skipped. force: accept
    a changed recipe, base model or version, with a warning. Raises ValueError."""
    folder, skipped = _find_checkpoint(recipe)
    if folder is not None:
        if ranks.rank == 0:
            scan_pickles(folder)
        _check_sharding(folder, recipe, ranks)
        _check_rows_of_a_step(folder, recipe, ranks)
        may_change = _SHARDING_KEYS if must_reshard(folder, recipe, ranks) else ()
        if ranks.world != written_sharding(folder, optimizer_sharding(recipe.train, ranks))["ranks"]:
            may_change = (*may_change, *(f"train.{key}" for key in _SHAPE_KEYS))
        for change in check_unchanged(folder, with_grouping(recipe, folder), force, may_change):
            if ranks.rank == 0:
                log.warning("continuing from %s despite a change: %s", folder.name, change)
    return folder, skipped


def must_reshard(checkpoint: Path, recipe: Recipe, ranks: RankInfo) -> bool:
    """Whether the optimizer's state of the checkpoint is converted before it is read."""
    now = optimizer_sharding(recipe.train, ranks)
    return needs_conversion(written_sharding(checkpoint, now), now)


def reads_universal(checkpoint: Path | None, recipe: Recipe, ranks: RankInfo) -> bool:
    """Whether DeepSpeed reads the state as a universal checkpoint (`load_universal`)."""
    now = optimizer_sharding(recipe.train, ranks)
    return checkpoint is not None and loads_universal(written_sharding(checkpoint, now), now)


def folder_to_load(checkpoint: Path | None, recipe: Recipe, ranks: RankInfo, trainer: Any) -> str | None:
    """For the Trainer, which is ready to start. Collective: the optimizer's state may be converted here."""
    if checkpoint is None or not must_reshard(checkpoint, recipe, ranks):
        return None if checkpoint is None else str(checkpoint)
    now = optimizer_sharding(recipe.train, ranks)
    then, run = written_sharding(checkpoint, now), Path(recipe.train.output_dir)
    return str(reshard(checkpoint, run, then, now, ranks, trainer))


def with_grouping(recipe: Recipe, checkpoint: Path | None) -> Recipe:
    """The recipe with `data.group_by_length` decided, if it leaves it to the default: as in the checkpoint (runs were
    not grouped by default at first), or as in a new run."""
    data, grouped = recipe.data, recipe.data.groups_by_length
    if checkpoint is not None and data.group_by_length is None:
        grouped = bool((_read(checkpoint / RECIPE_FILE).get("data") or {}).get("group_by_length"))
    return recipe.model_copy(update={"data": data.model_copy(update={"group_by_length": grouped})})


def was_surveyed(checkpoint: Path | None) -> bool | None:
    """Whether unusable rows were left out of the order of that run, as `TrainFeed.open` takes it; None: a new run."""
    if checkpoint is None:
        return None
    grouped = bool((_read(checkpoint / RECIPE_FILE).get("data") or {}).get("group_by_length"))
    return bool(_read(checkpoint / ROWS_FILE).get("surveyed", grouped))


def check_same_rows(checkpoint: Path | None, rows: Mapping[str, Any], force: bool) -> None:
    """Raises ValueError where the order of rows would be another than in the checkpoint, unless `force`. rows:
    `TrainFeed.fingerprint`. Earlier releases recorded none."""
    then = {} if checkpoint is None else _read(checkpoint / ROWS_FILE)
    changed = [f"{name} {then[name]} then, {rows.get(name)} now" for name in then if then[name] != rows.get(name)]
    if not changed:
        return
    message = (
        f"data.train: the rows, their lengths, or which of them can be used are not those of {checkpoint}: "
        f"{'; '.join(changed)}"
    )
    if not force:
        raise ValueError(
            f"{message}. Restore rows and images, choose another train.output_dir, or continue with other rows: "
            "--force. Nothing was changed"
        )
    log.warning("continuing despite a change: %s", message)


def _find_checkpoint(recipe: Recipe) -> tuple[Path | None, list[IncompleteCheckpoint]]:
    run, resume = Path(recipe.train.output_dir), recipe.train.resume
    if resume == "auto":
        newest, incomplete = latest_complete(run)
        if newest is None and incomplete:
            listed = "\n".join(f"  {each.folder.name}: {each.why}" for each in incomplete)
            raise ValueError(
                f"{run} has no checkpoint to resume from; each of its checkpoints is damaged:\n{listed}\nRestore one, "
                "choose another train.output_dir, or start again from step 1 and replace them: train.resume=never"
            )
        return newest, incomplete
    if resume == "never":
        existing, _ = latest_complete(run)
        if existing is not None:
            raise ValueError(
                f"train.resume: never, but {run} holds {existing.name}, which would be overwritten; "
                "choose another train.output_dir, or resume: auto"
            )
        return None, []
    folder = Path(resume)
    why = why_incomplete(folder) if folder.is_dir() else "there is no such folder"
    if why is not None:
        raise ValueError(f"train.resume: {resume} cannot be resumed from: {why}")
    step_of(folder)  # raises if its name is not that of a checkpoint
    return folder, []


def scan_pickles(checkpoint: Path) -> None:
    """DeepSpeed unpickles whatever a checkpoint holds, and a pickle can run any code. This lists, without loading
    them, the globals that the files would import, and raises ValueError if one is not known to be safe."""
    for file in sorted(each for each in checkpoint.rglob("*") if each.suffix in _PICKLED and each.is_file()):
        try:
            unknown = set(get_unsafe_globals_in_checkpoint(file)) - _SAFE_GLOBALS
            if GETATTR in unknown and reads_enum_members_only(file, _SAFE_ENUMS):
                unknown.remove(GETATTR)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{file} was not saved by torch, and is not opened: {error}") from error
        if unknown:
            raise ValueError(
                f"{file} would run code when it is loaded: {', '.join(sorted(unknown))}. No run writes that; resume "
                "only from your own checkpoints"
            )


def _check_sharding(folder: Path, recipe: Recipe, ranks: RankInfo) -> None:
    """The optimizer's state is partitioned for one number of ranks, one ZeRO stage and one backend; most are converted
    to others."""
    now = optimizer_sharding(recipe.train, ranks)
    written = written_sharding(folder, now)
    differs = [f"{name} {written[name]}, now {now[name]}" for name in now if written[name] != now[name]]
    reason = why_not_converted(written, now, recipe.train.precision) if needs_conversion(written, now) else None
    if reason is not None:
        raise ValueError(
            f"{folder} was written with {' and '.join(differs)}; the optimizer's state is not converted: {reason}. "
            "Start with the same launcher, backend and stage, or begin a new run from its weights: "
            f"python -m dart_train export {folder} --out FOLDER, then model.path=FOLDER and another "
            "train.output_dir. Nothing was changed"
        )


def written_sharding(checkpoint: Path, now: Sharding) -> Sharding:
    """How the optimizer's state of a checkpoint is partitioned; earlier releases did not record all of it."""
    written = json.loads((checkpoint / COMPLETE_MARKER).read_text(encoding="utf-8"))
    return {name: written.get(name, value) for name, value in now.items()}


def _check_rows_of_a_step(checkpoint: Path, recipe: Recipe, ranks: RankInfo) -> None:
    """On another number of ranks a step needs the same rows, divided differently."""
    train, then = recipe.train, _read(checkpoint / RECIPE_FILE).get("train") or {}
    shape = [then.get(key) for key in _SHAPE_KEYS]
    before = json.loads((checkpoint / COMPLETE_MARKER).read_text(encoding="utf-8")).get("ranks", ranks.world)
    if before == ranks.world or not all(isinstance(size, int) for size in shape):
        return
    rows = before * shape[0] * shape[1]
    now = ranks.world * train.per_device_batch_size * train.gradient_accumulation_steps
    if rows != now:
        raise ValueError(
            f"{checkpoint} was written with {rows} rows in a step ({before} ranks x {shape[0]} x {shape[1]}), "
            f"now {now} ({ranks.world} ranks x {train.per_device_batch_size} x {train.gradient_accumulation_steps}); "
            "choose train.per_device_batch_size and train.gradient_accumulation_steps so that a step has as many. "
            "Nothing was changed"
        )


def check_unchanged(checkpoint: Path, recipe: Recipe, force: bool, may_change: Sequence[str] = ()) -> list[str]:
    """The differences to the recipe, base model and versions of the checkpoint. Raises ValueError if there are some,
    unless `force`."""
    changes = [
        # Through YAML, as it was written: a tuple is a list there.
        *(
            change
            for change in _differences(_read(checkpoint / RECIPE_FILE), yaml.safe_load(recipe.to_yaml()), "")
            if not change.startswith(tuple(f"{key}:" for key in may_change))
        ),
        *_base_changes(checkpoint, recipe),
        *_template_changes(checkpoint, recipe),
        *_version_changes(checkpoint),
    ]
    if changes and not force:
        listed = "\n".join(f"  {each}" for each in changes)
        raise ValueError(
            f"{checkpoint} was written with different settings:\n{listed}\nRestore them, choose another "
            "train.output_dir, or continue with these changes: --force. Nothing was changed"
        )
    return changes


def _template_changes(checkpoint: Path, recipe: Recipe) -> Iterator[str]:
    """The file of `data.template` may have another text than the template that was saved with the processor."""
    template, saved = recipe.data.template_text(), checkpoint / "chat_template.jinja"
    if template is not None and saved.is_file() and saved.read_text(encoding="utf-8") != template:
        yield f"data.template: its text is not that of {saved}"


def _differences(then: Any, now: Any, path: str) -> Iterator[str]:
    if path in KEYS_THAT_MAY_CHANGE or then == now:
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*then, *now]):
            # A key that the older version did not know had the behaviour that is its default now.
            if key in then and key in now:
                yield from _differences(then[key], now[key], f"{path}.{key}" if path else str(key))
        return
    yield f"{path}: {then!r} then, {now!r} now"


def _base_changes(checkpoint: Path, recipe: Recipe) -> Iterator[str]:
    then, now = _read(checkpoint / BASE_FILE).get("model"), base_of(recipe)["model"]
    if then is not None and then != now:
        yield f"model.path: another base model, {recipe.model.path} ({then} then, {now} now)"


def _version_changes(checkpoint: Path) -> Iterator[str]:
    then, now = _read(checkpoint / VERSIONS_FILE), versions()
    yield from (f"{name}: {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name])


def _read(file: Path) -> dict[str, Any]:
    """Empty where there is no file."""
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}
