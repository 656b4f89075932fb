"""What all tests share: launches of DeepSpeed run one after the other, whatever the number of workers."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two launches of two ranks each on two cores would wait for each other beyond a process group's patience."""
    for item in items:
        if item.get_closest_marker("deepspeed"):
            item.add_marker(pytest.mark.xdist_group("deepspeed"))
