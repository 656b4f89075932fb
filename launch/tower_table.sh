#!/usr/bin/env bash
# What a stage in the vision tower gains, and decoding, measured again: about eight minutes on one quiet core.
#   bash launch/tower_table.sh               writes data/results/benchmarks/{prefill_tower,step_tower,tower_page,decode}_cpu.*
#   bash launch/tower_table.sh --clock cpu   the same by CPU time, where other work runs
# Python: $PYTHON, or .venv, or python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
results=data/results/benchmarks
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

measure() { # name, bench, options
    local name="$1"
    shift
    "$python" -m dart_train bench "$@" --device cpu --out "$work/$name" >/dev/null
    cp "$work/$name/bench.json" "$results/${name}_cpu.json"
    cp "$work/$name/bench.md" "$results/${name}_cpu.md"
    sed -n '/^|/p' "$results/${name}_cpu.md"
}

half="half of the tower, then DART"
measure prefill_tower prefill --models qwen2_5_vl qwen3_vl \
    --ways "full tokens" DART "$half" "tower stage on, keep-all" --repeats 5 --seconds 30 "$@"
measure step_tower step --models qwen2_5_vl --modes lora --rows 1 --ways "full tokens" "$half" \
    --repeats 3 --seconds 40 "$@"
"$python" data/pages.py --out runs/pages --test 1 >/dev/null
measure tower_page tower --image runs/pages/page.png --repeats 7 --seconds 20 "$@"
measure decode decode --models llava llava_next --repeats 7 --seconds 12 "$@"
