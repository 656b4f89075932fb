"""What serving before the language model (K = 0) costs against K = 2, for models that were trained for either.

    python -m launch.serving_cost               # three seeds, one process each
    python -m launch.serving_cost --publish     # and data/results/serving

Of each seed: a model trained by `recipes/tiny_serve.yaml` (K = 0, as engines can serve it) and one at K = 2 on the same
rows, with as many steps, the same full-token teacher and the same merging. Both answer questions that no other seed
and no earlier comparison has, and the claim is evaluated on the questions of all seeds together. `train` and `compare`
continue where they were when the command is given again.

The claim was written before any of these models had answered a question, and no setting was chosen on the questions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .claim import Cell, Part
from .demo import Commands
from .trained_pair import TrainedPair, finish, options_parser

RESULTS = Path("data/results/serving")
COMPARE = "recipes/compare_serve.yaml"
FIRST_SEED = 201  # of the questions; data/results/serving has what earlier ones were used for
SAME = ("train.max_steps=100", "train.per_device_batch_size=6", "train.zero_stage=0", "log.report_to=[]")
TRAIN = {
    "trained at K = 0": ("recipes/tiny_serve.yaml",),
    "trained at K = 2": (
        "recipes/tiny_dart.yaml", "reduction.merge=nearest", "distill.enabled=true", "distill.teacher=full",
    ),
}  # fmt: skip
K0, K2 = TRAIN
SERVED = {"name": "K = 0", "method": "dart", "layer": 0, "text_pivots": 0, "pivot": "key_min", "per": "image"}
METHODS: list[dict[str, Any]] = [
    {**SERVED, "merge": "nearest", "checkpoints": [K0, K2]},
    {"name": "K = 2", "method": "dart", "layer": 2, "merge": "nearest", "checkpoints": [K2]},
]
BUDGETS = ("0.222", "0.111")


def cell(checkpoint: str, method: str, budget: str) -> Cell:
    return checkpoint, method, budget


PARTS = (
    Part("22.2%, each as trained: K = 0 less K = 2", cell(K0, "K = 0", "0.222"), cell(K2, "K = 2", "0.222"), -0.02),
    Part("11.1%, each as trained: K = 0 less K = 2", cell(K0, "K = 0", "0.111"), cell(K2, "K = 2", "0.111"), -0.04),
    Part(
        "11.1% at K = 0: trained for it, less trained at K = 2",
        cell(K0, "K = 0", "0.111"), cell(K2, "K = 0", "0.111"), 0.01,
    ),
    Part("full tokens: trained at K = 0, less base", cell(K0, "full", "full"), cell("base", "full", "full"), -0.02),
)  # fmt: skip
SHOWN = tuple(
    cell(checkpoint, method, budget)
    for checkpoint in ("base", K0, K2)
    for method, budgets in (("full", ("full",)), ("K = 0", BUDGETS), ("K = 2", BUDGETS))
    for budget in budgets
    if method == "full" or (checkpoint, method) in ((K0, "K = 0"), (K2, "K = 0"), (K2, "K = 2"))
)


PAIR = TrainedPair(
    train=TRAIN,
    same=SAME,
    compare=COMPARE,
    methods=METHODS,
    budgets=list(map(float, BUDGETS)),
    parts=PARTS,
    shown=SHOWN,
    first_seed=FIRST_SEED,
    results=RESULTS,
)


def main() -> int:
    options, commands = options_parser(__doc__ or "", "runs/serving_cost", 24, RESULTS).parse_args(), Commands()
    return finish(PAIR, options, commands, PAIR.run(options, commands))


if __name__ == "__main__":
    raise SystemExit(main())
