"""Fixtures for all packages. Fixtures of one package are in its own conftest.py."""

from tests.fixtures.rank_jobs import rank_launch, rank_runs
from tests.fixtures.runs import runs

__all__ = ["rank_launch", "rank_runs", "runs"]
