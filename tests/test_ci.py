"""`.ci/run` runs all test sets, and continues without a browser when none can be installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ("dirname", "mktemp", "rm", "tail", "timeout")


def test_ci_continues_without_a_browser(tmp_path: Path) -> None:
    bash = shutil.which("bash") or "bash"
    for folder in ("bin", ".ci", "launch"):
        (tmp_path / folder).mkdir()
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    (tmp_path / "bin" / "bash").symlink_to(bash)
    for name, script in {"id": "echo 0", "apt-get": "echo E: no network >&2; exit 100"}.items():
        (tmp_path / "bin" / name).write_text(f"#!{bash}\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "launch" / "test.sh").write_text('echo "tests ran $*"\n')
    environment = {"PATH": str(tmp_path / "bin"), "TMPDIR": str(tmp_path)}
    command = [bash, str(tmp_path / ".ci" / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not be installed (E: no network)" in done.stdout
    assert done.stdout.endswith("tests ran \ntests ran --gpu-dry-run\ntests ran --bounds\n")
