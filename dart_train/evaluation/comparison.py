"""The compare verb: checkpoints x methods x budgets are asked, timed, and told."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..common.distributed import RankInfo, part
from ..config import Recipe
from .answer_store import AnswerStore, Line, known, part_of_rank, settle
from .comparison_grid import Cell, Prepared, open_recipe, prepare
from .cost import Cost, costs
from .generate import Subject, Todo, ask, fingerprint, key_for
from .questions import Question
from .scoring import Entry, Group, Pair, entries, groups, pairs
from .tables import (
    COST,
    COSTS,
    PAIRS,
    TABLE,
    cost_rows,
    markdown,
    pair_rows,
    read_costs,
    table_rows,
    write_costs,
    write_csv,
)

# All that a comparison found, for whoever writes or draws it.


@dataclass(frozen=True)
class Results:
    """lines: as in results.jsonl, cell after cell; costs: none where nothing was timed."""

    prepared: Prepared
    lines: list[Line]
    costs: list[Cost]

    @property
    def folder(self) -> Path:
        return self.prepared.folder

    @property
    def cells(self) -> list[Cell]:
        return self.prepared.cells

    @property
    def seed(self) -> int:
        return self.prepared.recipe.compare.seed

    @cached_property
    def questions(self) -> dict[tuple[str, str], Question]:
        return {(question.set, question.id): question for question in self.prepared.questions}

    @cached_property
    def groups(self) -> list[Group]:
        return groups(self.lines, self.prepared.recipe.compare, self.prepared.sets)

    @cached_property
    def entries(self) -> list[Entry]:
        return list(entries(self.groups, self.lines, self.seed))

    @cached_property
    def pairs(self) -> list[Pair]:
        return pairs(self.groups, self.seed)


def compare(recipe: Recipe | str | Path) -> Results | None:
    """All files of the comparison lie in `compare.output_dir` afterwards. None on ranks but the first."""
    ranks = RankInfo.read()
    if not isinstance(recipe, Recipe):
        recipe = open_recipe(recipe, progress=ranks.rank == 0)
    prepared = prepare(recipe, progress=ranks.rank == 0)
    marks = {cell: fingerprint(recipe, cell, prepared.found[cell.checkpoint]) for cell in prepared.cells}
    here = _todo(prepared, marks, ranks)
    met = ranks.meet(replace(recipe.train, deepspeed=None, offload_optimizer=False, offload_parameters=False))
    try:
        if dist.is_initialized():
            dist.barrier()  # every rank has read what was there, before any writes
        _ask(prepared, here, ranks)
        if dist.is_initialized():
            dist.barrier()
    finally:
        if met:
            part()
    if ranks.rank:
        return None
    lines = settle(prepared.folder, [key_for(marks[cell], q) for cell in prepared.cells for q in prepared.questions])
    results = Results(prepared, lines, _timed(prepared, marks, ranks))
    write(results)
    return results


def write(results: Results) -> None:
    """Tables first: a report that fails must not cost them."""
    folder = results.folder
    write_csv(folder / TABLE, table_rows(results.entries))
    write_csv(folder / PAIRS, pair_rows(results.pairs))
    write_csv(folder / COST, cost_rows(results.costs))
    (folder / "table.md").write_text(markdown(results.entries, results.costs), encoding="utf-8")
    (folder / "recipe.yaml").write_text(results.prepared.recipe.to_yaml(), encoding="utf-8")
    from .report import write_report
    from .tracking import track

    report = write_report(results)
    track(results, report)


def _todo(prepared: Prepared, marks: Mapping[Cell, str], ranks: RankInfo) -> Todo:
    """What is not answered yet, dealt out to the ranks."""
    done = known(prepared.folder)
    left = {cell: [q for q in prepared.questions if key_for(marks[cell], q) not in done] for cell in prepared.cells}
    every, new = len(prepared.cells) * len(prepared.questions), sum(map(len, left.values()))
    if ranks.rank == 0 and 0 < new < every:
        tqdm.write(f"compare: {every - new} of {every} answers lie there already")
    return [(cell, marks[cell], questions[ranks.rank :: ranks.world]) for cell, questions in left.items()]


def _ask(prepared: Prepared, todo: Todo, ranks: RankInfo) -> None:
    left = sum(len(questions) for *_, questions in todo)
    journal = AnswerStore(part_of_rank(prepared.folder, ranks.rank))
    if not left:
        return
    with tqdm(total=left, desc="questions", unit="q", disable=ranks.rank != 0) as bar:
        for name in prepared.found:
            mine = [each for each in todo if each[0].checkpoint == name and each[2]]
            if mine:
                ask(_subject(prepared, name, ranks), mine, prepared.recipe, journal, bar)


def _subject(prepared: Prepared, name: str, ranks: RankInfo) -> Subject:
    path = prepared.paths[name]
    if torch.cuda.is_available():
        return Subject(prepared.recipe, path, torch.device("cuda", ranks.rank % torch.cuda.device_count()))
    return Subject(prepared.recipe, path, torch.device("cpu"))


def _timed(prepared: Prepared, marks: Mapping[Cell, str], ranks: RankInfo) -> list[Cost]:
    """What was measured before under the same settings on the same machine is not measured again."""
    if not prepared.recipe.compare.timing:
        return []
    file = prepared.folder / COSTS
    found = read_costs(file)
    for name in prepared.found:
        cells = prepared.cells_at(name)
        mark = _measured(prepared, [marks[cell] for cell in cells])
        if name not in found or found[name][0] != mark:
            found[name] = (mark, costs(_subject(prepared, name, ranks), cells, prepared.questions, prepared.recipe))
            write_costs(file, found)
    return [cost for name in prepared.found for cost in found[name][1]]


def _measured(prepared: Prepared, marks: list[str]) -> str:
    say = prepared.recipe.compare
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.node()} {platform.processor()}"
    settings = (say.timing_batch_size, say.timing_repeats, say.max_new_tokens, torch.__version__, device)
    asked = [question.key for question in prepared.questions]
    return hashlib.blake2b(json.dumps([marks, settings, asked]).encode(), digest_size=8).hexdigest()
