#!/usr/bin/env bash
# Everything that needs a GPU, once, within eight minutes: laws in bf16, training, benchmarks at 7B shapes, profiles.
# One page at the end, and in page.md. A stage that fails or takes too long does not stop the others.
#   bash launch/gpu.sh                              results in runs/gpu; in $OUT too, where that is set
#   bash launch/gpu.sh --device cpu --scale 0.03    a dry run without a GPU: does every stage run?
#   bash launch/gpu.sh --only laws prefill          some of the stages; --help lists them
# Python: $PYTHON, or .venv, or the machine's python3 where it has the packages, or else a new .venv.
# On a machine without network: launch/wheels.py collects what it lacks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has_packages() { "$1" -c 'import torch, transformers, deepspeed, peft, datasets' >/dev/null 2>&1; }

if [ -n "${PYTHON:-}" ]; then
    python="$PYTHON"
elif [ -x .venv/bin/python ]; then
    python=.venv/bin/python
elif has_packages python3; then
    python=python3
else
    . launch/setup.sh
    ready
    python=.venv/bin/python
fi
python="$(command -v "$python")"
case "$python" in /*) ;; *) python="$PWD/$python" ;; esac # subprocesses may run elsewhere
# The DeepSpeed launcher takes `python` and `deepspeed` from the PATH.
export PATH="$(dirname "$python"):$PATH" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_MODE=offline MPLBACKEND=Agg
exec "$python" -m launch.gpu "$@"
