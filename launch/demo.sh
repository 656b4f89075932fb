#!/usr/bin/env bash
# The main job from end to end, on two CPU cores, in minutes: draw data, train the choice, the model and a control
# without it, compare with the base, choose a budget, export, report. Makes .venv when there is none; nothing is
# downloaded besides.
#   bash launch/demo.sh              once
#   bash launch/demo.sh --seeds 3    the claim repeated, and summed up
#   bash launch/demo.sh --help       the other options
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/setup.sh

ready
# One thread a rank: two ranks on two cores are faster than one with two threads.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=Agg WANDB_SILENT=true
export WANDB_MODE="${WANDB_MODE:-offline}"
exec python -m launch.demo "$@"
