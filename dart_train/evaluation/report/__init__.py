"""The report of a comparison: plots, and one HTML page that opens from disk without a network."""

from .build import Plot, WrittenReport, write_report

__all__ = ["Plot", "WrittenReport", "write_report"]
