"""Which releases of the libraries are tested, and on which tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from launch import versions

LISTED = """\
WARNING: pip index is currently an experimental command.
transformers (5.26.1)
Available versions: 5.26.1, 5.24.1, 5.24.0, 5.9.0
  INSTALLED: 5.24.0
"""


def test_several_releases_may_be_named_and_the_rest_is_for_pytest() -> None:
    parsed = versions.parse(["--transformers", "5.25.0", "--peft=0.22", "-k", "llava"])
    assert parsed == (False, {"transformers": "5.25.0", "peft": "0.22"}, ["-k", "llava"])
    assert versions.parse(["--bounds"]) == (True, {}, [])


@pytest.mark.parametrize("arguments", [[], ["--bounds", "--trl", "1.0"], ["--trl", "newest"], ["--trl"]])
def test_arguments_that_name_no_release_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        versions.parse(arguments)


def test_every_library_has_a_range_whose_oldest_and_pinned_releases_are_inside() -> None:
    ranges, oldest, pinned = versions.read_ranges(), versions.read_oldest(), versions.read_pinned()
    assert ranges.keys() == oldest.keys() == pinned.keys() == versions.TESTS.keys()
    for library, allowed in ranges.items():
        assert oldest[library] in allowed and pinned[library] in allowed, library


def test_newest_release_is_the_highest_inside_the_range() -> None:
    assert versions.newest_inside(SpecifierSet(">=5.23,<5.25"), LISTED) == "5.24.1"
    assert versions.newest_inside(SpecifierSet(">=6"), LISTED) is None
    assert versions.newest_inside(SpecifierSet(">=5.23"), "ERROR: No matching distribution found") is None


def test_pinned_releases_are_not_tested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned, tested = versions.read_pinned(), {}
    monkeypatch.setattr(versions, "read_oldest", lambda: {**pinned, "peft": "0.0.1"})
    monkeypatch.setattr(versions, "find_newest", lambda pinned: pinned)
    monkeypatch.setattr(versions, "run_tests", lambda name, releases, rest: tested.update({name: releases}) or 0)
    assert versions.main(["--bounds"]) == 0
    assert tested == {"oldest": {"peft": "0.0.1"}}


@pytest.mark.parametrize(("version", "deselects"), [("5.24.0", False), ("5.99.0", True)])
def test_range_itself_is_tested_only_on_releases_inside(
    monkeypatch: pytest.MonkeyPatch, version: str, deselects: bool
) -> None:
    monkeypatch.setattr(versions, "make_environment", lambda folder, releases: Path(sys.executable))
    monkeypatch.setattr(versions, "read_added", lambda python, releases: [])
    ran: list[list[str]] = []
    monkeypatch.setattr(versions.subprocess, "run", lambda command, **_: ran.append(command) or Done())
    assert versions.run_tests("any", {"transformers": version}, []) == 0
    assert len(ran) == 2 and all(("--deselect" in command) == deselects for command in ran)


class Done:
    returncode = 0


def test_selected_tests_exist() -> None:
    for path in {path for paths in versions.TESTS.values() for path in paths}:
        assert (versions.ROOT / path).exists(), path
    file, name = versions.ONLY_INSIDE_THE_RANGE.split("::")
    assert f"def {name}(" in (versions.ROOT / file).read_text(encoding="utf-8")
