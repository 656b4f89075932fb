"""The compare command: prepare, answer on all ranks, score, time, and write tables and the report."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..common.distributed import RankInfo, destroy_process_group
from ..config import Recipe
from .answer_store import AnswerRecord, AnswerStore
from .comparison_grid import ComparisonCell, PreparedComparison, open_recipe, prepare
from .cost import CellCost, measure_costs
from .generate import CellQuestions, LoadedCheckpoint, answer_cells, fingerprint, key_for
from .results import ComparisonResults
from .tables import (
    COST,
    COSTS,
    PAIRS,
    TABLE,
    cost_records,
    markdown,
    pair_records,
    read_costs,
    score_records,
    write_costs,
    write_csv,
)


def compare(recipe: Recipe | str | Path) -> ComparisonResults | None:
    """Compares checkpoints, methods and budgets on the recipe's questions, and writes everything to
    `compare.output_dir`. Answers that are already there are reused. Returns None on all ranks but the first."""
    ranks = RankInfo.read()
    if not isinstance(recipe, Recipe):
        recipe = open_recipe(recipe, progress=ranks.rank == 0)
    prepared = prepare(recipe, progress=ranks.rank == 0)
    fingerprints = fingerprints_of(prepared)
    records = answer_questions(prepared, fingerprints, ranks)
    if records is None:
        return None
    results = ComparisonResults(prepared, records, _measure_costs(prepared, fingerprints, ranks))
    write(results)
    return results


def fingerprints_of(prepared: PreparedComparison) -> dict[ComparisonCell, str]:
    return {cell: fingerprint(prepared.recipe, cell, prepared.found[cell.checkpoint]) for cell in prepared.cells}


def answer_questions(
    prepared: PreparedComparison, fingerprints: Mapping[ComparisonCell, str], ranks: RankInfo
) -> list[AnswerRecord] | None:
    """The answers of all cells, cell by cell, written to results.jsonl; those that exist are reused. None on all ranks
    but the first."""
    config = prepared.recipe.train
    store = AnswerStore(prepared.folder, ranks.rank)
    work = _missing_answers(prepared, fingerprints, store, ranks)
    joined = ranks.init_process_group(config.timeout_seconds, ranks.uses_deepspeed(config.zero_stage))
    try:
        if dist.is_initialized():
            dist.barrier()  # every rank has read the existing answers before any rank writes
        _answer(prepared, work, store, ranks)
        if dist.is_initialized():
            dist.barrier()
    finally:
        if joined:
            destroy_process_group()
    if ranks.rank:
        return None
    wanted = [key_for(fingerprints[cell], question) for cell in prepared.cells for question in prepared.questions]
    return store.finalize(wanted)


def _missing_answers(
    prepared: PreparedComparison, fingerprints: Mapping[ComparisonCell, str], store: AnswerStore, ranks: RankInfo
) -> list[CellQuestions]:
    """This rank's share of the questions that are not answered yet."""
    existing = store.load_existing()
    missing = {
        cell: [question for question in prepared.questions if key_for(fingerprints[cell], question) not in existing]
        for cell in prepared.cells
    }
    total, new = len(prepared.cells) * len(prepared.questions), sum(map(len, missing.values()))
    if ranks.rank == 0 and 0 < new < total:
        tqdm.write(f"compare: {total - new} of {total} answers exist already")
    return [
        CellQuestions(cell, fingerprints[cell], questions[ranks.rank :: ranks.world])
        for cell, questions in missing.items()
    ]


def _answer(prepared: PreparedComparison, work: list[CellQuestions], store: AnswerStore, ranks: RankInfo) -> None:
    """Loads each checkpoint once, and only if it has questions to answer."""
    total = sum(len(each.questions) for each in work)
    if not total:
        return
    with tqdm(total=total, desc="questions", unit="q", disable=ranks.rank != 0) as bar:
        for name in prepared.found:
            of_checkpoint = [each for each in work if each.cell.checkpoint == name and each.questions]
            if of_checkpoint:
                answer_cells(_load(prepared, name, ranks), of_checkpoint, prepared.recipe, store, bar)


def _load(prepared: PreparedComparison, name: str, ranks: RankInfo) -> LoadedCheckpoint:
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", ranks.rank % torch.cuda.device_count())
    return LoadedCheckpoint(prepared.recipe, prepared.paths[name], device)


def _measure_costs(
    prepared: PreparedComparison, fingerprints: Mapping[ComparisonCell, str], ranks: RankInfo
) -> list[CellCost]:
    """Costs that were measured with the same settings on the same machine are reused."""
    if not prepared.recipe.compare.timing:
        return []
    file = prepared.folder / COSTS
    costs = read_costs(file)
    for name in prepared.found:
        cells = prepared.cells_of(name)
        measured = _cost_fingerprint(prepared, [fingerprints[cell] for cell in cells])
        if name not in costs or costs[name][0] != measured:
            checkpoint = _load(prepared, name, ranks)
            costs[name] = (measured, measure_costs(checkpoint, cells, prepared.questions, prepared.recipe))
            write_costs(file, costs)
    return [cost for name in prepared.found for cost in costs[name][1]]


def _cost_fingerprint(prepared: PreparedComparison, cells: list[str]) -> str:
    config = prepared.recipe.compare
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.node()} {platform.processor()}"
    settings = (config.timing_batch_size, config.timing_repeats, config.max_new_tokens, torch.__version__, device)
    questions = [question.key for question in prepared.questions]
    return hashlib.blake2b(json.dumps([cells, settings, questions]).encode(), digest_size=8).hexdigest()


def write(results: ComparisonResults) -> None:
    """Tables first, so that they exist even if the report fails."""
    from .report import write_report  # here, as matplotlib takes a second to import
    from .tracking import track

    folder = results.folder
    write_csv(folder / TABLE, score_records(results.scores))
    write_csv(folder / PAIRS, pair_records(results.pairs))
    write_csv(folder / COST, cost_records(results.costs))
    (folder / "table.md").write_text(markdown(results.scores, results.costs), encoding="utf-8")
    (folder / "recipe.yaml").write_text(results.prepared.recipe.to_yaml(), encoding="utf-8")
    track(results, write_report(results))
