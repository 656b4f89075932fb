"""python launch/ranks.py --num_gpus 2 launch/train.py recipes/llava_dart.yaml key=value ...

The `deepspeed` command with the same arguments, for a terminal. That command handles no signal: on Ctrl-C it prints a
traceback and returns while its ranks still write their checkpoint, and DeepSpeed kills ranks that take longer than 30
seconds. Here Ctrl-C, SIGTERM or a closed terminal is one request to the ranks to stop; the exit code is theirs (75: a
checkpoint was written). A second one ends them at once. DeepSpeed's own lines are left out;
--log_level info shows them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    levels = {"-q", "--quiet", "--log_level"}
    quiet = [] if levels & {each.split("=")[0] for each in arguments} else ["--log_level", "critical"]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *quiet, *arguments]
    # A session of its own: the terminal's Ctrl-C reaches this process alone.
    runner = subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent)
    requests = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal requests
        requests += 1
        ranks = ranks_of(runner.pid) if requests == 1 else []
        for rank in ranks:
            rank.send_signal(signal.SIGUSR1)  # one is enough, but one may be about to end
        if ranks:
            print("train: the step is finished and a checkpoint written; Ctrl-C again ends at once", file=sys.stderr)
        if not ranks:  # none yet, or on other hosts, where DeepSpeed's own launcher ends them; or a second request
            _end(runner, at_once=requests > 1)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, on_signal)
    code = runner.wait()
    return 128 - code if code < 0 else code


def ranks_of(pid: int) -> list[psutil.Process]:
    """The processes below `pid` that DeepSpeed started as ranks."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            # Loader processes inherit it from their rank; DeepSpeed's own launcher does not have it.
            own = "RANK" in process.environ() and "RANK" not in psutil.Process(process.ppid()).environ()
        except psutil.Error:
            continue
        if own:
            found.append(process)
    return found


def _end(runner: subprocess.Popen[bytes], at_once: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(runner.pid, signal.SIGKILL if at_once else signal.SIGTERM)


def _end_with_parent() -> None:
    """If this process is killed, the command ends too, which its ranks notice."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
