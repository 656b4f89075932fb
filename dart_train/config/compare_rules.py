"""Rules of the section `compare`."""

from __future__ import annotations

from collections.abc import Iterator

from ..common.metrics import unknown_metric
from .errors import ConfigIssue
from .methods import REDUCTION_ALIAS, duplicate_labels, expand_reduction_alias, read_method
from .schema import Recipe


def check_compare(recipe: Recipe) -> Iterator[ConfigIssue]:
    for key in ("methods", "budgets", "metrics"):
        if not getattr(recipe.compare, key):
            yield ConfigIssue(f"compare.{key}", "empty", "name at least one, or leave the key out")
    for path, name in _metric_names(recipe):
        wrong = unknown_metric(name)
        if wrong:
            yield ConfigIssue(path, wrong)
    yield from _question_sets(recipe)


def _metric_names(recipe: Recipe) -> Iterator[tuple[str, str]]:
    given = {"compare.metrics": recipe.compare.metrics}
    for i, each in enumerate(recipe.compare.sets):
        given[f"compare.sets.{i}.metrics"] = each.metrics
        given |= {f"compare.sets.{i}.kind_metrics.{kind}": names for kind, names in each.kind_metrics.items()}
    for path, names in given.items():
        yield from ((f"{path}.{i}", name) for i, name in enumerate(names))


def _question_sets(recipe: Recipe) -> Iterator[ConfigIssue]:
    for i, each in enumerate(recipe.compare.sets):
        if each.streaming:
            remedy = "leave it out, and give a limit where the set is large"
            yield ConfigIssue(
                f"compare.sets.{i}.streaming", "not supported here: every checkpoint answers the same questions", remedy
            )


def check_compared_methods(recipe: Recipe) -> Iterator[ConfigIssue]:
    """What the reducers report about `compare.methods`. Imports torch."""
    own, wrong = recipe.reduction, False
    given = expand_reduction_alias(recipe.compare.methods, own.stages, own.tower)
    for i, method in enumerate(recipe.compare.methods):
        try:
            if method == REDUCTION_ALIAS and not recipe.reduction.stages:
                raise ValueError("the recipe's reduction is none; name a method, or give a reduction")
            unknown = set(read_method(given[i]).checkpoints) - set(recipe.compare.checkpoints)
            if unknown:
                known = ", ".join(recipe.compare.checkpoints) or "none"
                raise ValueError(
                    f"checkpoints: {', '.join(sorted(unknown))} not in compare.checkpoints, which has {known}"
                )
        except ValueError as error:
            wrong = True
            yield ConfigIssue(f"compare.methods.{i}", str(error))
    for i, label in [] if wrong else duplicate_labels(given):
        remedy = "leave one out, or give it a name of its own"
        yield ConfigIssue(f"compare.methods.{i}", f"has the name {label!r}, as an earlier method does", remedy)
