#!/usr/bin/env bash
# Everything that has to hold: ruff (rules and format), mypy, pytest. Makes .venv when there is none.
#   bash launch/test.sh              the quick set
#   bash launch/test.sh --all        slow tests and fault injection too
#   bash launch/test.sh --transformers 5.25.0   the laws and a short run on another release of a library; also
#                                    --accelerate, --datasets, --deepspeed, --peft and --trl, one or several
#   bash launch/test.sh --bounds     the same on the oldest and the newest releases that pyproject.toml allows
#   bash launch/test.sh --vllm       the plug-in in the real engine, in an environment of its own (.venvs/vllm)
#   bash launch/test.sh --gpu-dry-run   every stage of launch/gpu.sh, on the CPU
#   bash launch/test.sh -k recipe    whatever follows goes to pytest (so: -m gpu on a machine with a GPU)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/setup.sh

markers="not slow and not drill and not gpu and not vllm"
if [ "${1:-}" = "--all" ]; then
    markers="not gpu and not vllm"
    shift
fi

ready
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_MODE=offline MPLBACKEND=Agg

case "${1:-}" in
    --gpu-dry-run)
        exec python -m pytest -m slow tests/launch/test_gpu_run.py
        ;;
    --vllm)
        shift
        bash launch/vllm_env.sh
        exec python -m pytest -m vllm tests/vllm "$@"
        ;;
    --bounds | --transformers* | --accelerate* | --datasets* | --deepspeed* | --peft* | --trl*)
        exec python -m launch.versions "$@"
        ;;
esac

ruff check .
ruff format --check .
mypy
mypy launch/*.py

# One selection of tests. An empty one is not a failure: arguments such as -k may select only tests of the other.
tests() {
    local code=0
    python -m pytest "$@" || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq 5 ] || return "$code"
}

if [[ " $* " == *" -m "* ]]; then # a selection of its own
    tests "$@"
    exit
fi

# Every launch of DeepSpeed starts two ranks, so these tests run one after the other. Ranks wait for each other, for
# files and for signals: the other tests, on two workers, use that time.
log=$(mktemp)
selected=("$@")
if [ $# -eq 0 ]; then # only their files: collecting all takes as long as two of these launches
    mapfile -t selected < <(grep -rlw --include="test_*.py" "mark.deepspeed" tests | sort)
fi
set -m # a process group of its own, in which Ctrl-C is not ignored: tests send it to the runs that they start
tests -m "$markers and deepspeed" "${selected[@]}" >"$log" 2>&1 </dev/null &
launches=$!
set +m
trap 'kill -INT -- "-$launches" 2>/dev/null || true; rm -f "$log"' EXIT
code=0
tests -n 2 -m "$markers and not deepspeed" "$@" || code=$?
wait "$launches" || code=$?
cat "$log"
exit "$code"
