"""What CI does before the tests: it brings a browser where it can, and goes on where it cannot."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RAN = "tests ran \ntests ran --bounds\n"
TOOLS = ("bash", "dirname", "mktemp", "rm", "tail", "timeout")


@pytest.fixture
def machine(tmp_path: Path):
    """A machine of its own, with so much on it and no more; tells what CI printed there, and what apt was asked for."""
    for folder in ("bin", ".ci", "launch"):
        (tmp_path / folder).mkdir()
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name} here"))
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "launch" / "test.sh").write_text('echo "tests ran $*"\n')

    def has(name: str, does: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!{shutil.which('bash')}\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(user: int = 0, **programs: str) -> tuple[str, str]:
        asked = tmp_path / "asked"
        asked.write_text("")
        has("id", f"echo {user}")
        for name, does in programs.items():
            has(name.replace("_", "-"), f'echo "$@" >> {asked}\n{does}')
        settings = {"PATH": str(tmp_path / "bin"), "TMPDIR": str(tmp_path)}
        done = subprocess.run([shutil.which("bash") or "bash", str(tmp_path / ".ci" / "run")], env=settings,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0 and done.stdout.endswith(RAN), done.stdout + done.stderr
        return done.stdout, asked.read_text()

    return run


def test_a_browser_that_is_there_is_left_alone(machine) -> None:
    assert machine(chromium="true", apt_get="true") == (RAN, "")


def test_a_missing_browser_is_installed(machine) -> None:
    told, asked = machine(apt_get="true")
    assert "Chromium was installed" in told
    update, install = asked.splitlines()
    assert update.endswith("update") and "install" in install and " chromium " in f"{install} "


def test_where_it_cannot_be_had_a_line_says_so_and_tests_go_on(machine) -> None:
    told, _ = machine(apt_get="echo E: nothing of that name >&2; exit 100")
    assert "could not be installed (E: nothing of that name): tests of the report skip" in told


@pytest.mark.parametrize(("user", "programs"), [(1000, {"apt_get": "true"}), (0, {})])
def test_where_it_may_not_be_installed_nobody_tries(machine, user: int, programs: dict[str, str]) -> None:
    told, asked = machine(user, **programs)
    assert "no apt-get as root" in told and asked == ""
