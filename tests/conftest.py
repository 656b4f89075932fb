"""Fixtures for all packages. Fixtures of one package are in its own conftest.py."""

import gc

from tests.fixtures.rank_jobs import rank_launch, rank_runs
from tests.fixtures.runs import runs

__all__ = ["rank_launch", "rank_runs", "runs"]


def pytest_collection_finish() -> None:
    """Every training ends with a full garbage collection. It need not look at all that the imports have made."""
    gc.collect()
    gc.freeze()
