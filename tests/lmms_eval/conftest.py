from tests.fixtures.runs import runs

__all__ = ["runs"]
