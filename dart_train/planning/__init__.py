"""What a recipe's training will cost, with and without its reduction, before a GPU is paid for.

    plan = predict(recipe)
    print(plan)
    print(plan.compare_with_run({"step_seconds": 1.9}))       # after the run

Tokens are counted, a few calls are timed on this device, and the rest is computed from the model's shapes."""

from .predict import predict
from .report import BudgetCost, Plan

__all__ = ["BudgetCost", "Plan", "predict"]
