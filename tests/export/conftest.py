from tests.checkpoint.runs import runs

__all__ = ["runs"]
