# Sourced by the launch scripts: `ready` makes .venv once, with the versions of launch/constraints.txt.
#   PYTHON=python3.12   another interpreter for a new environment
# pip's own settings (an index, a folder of wheels, a proxy) count as always, so a machine with a GPU gets
# the GPU build of torch and a machine with wheels of its own gets those.

EXTRAS="dev,quantized,serve,tensorboard,video,wandb"

ready() {
    local root python stamp pins
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    python="$root/.venv/bin/python"
    stamp="$root/.venv/dart-train.stamp"
    cd "$root" || return 1
    [ -x "$python" ] || new_environment "$root/.venv" || return 1
    pins="$(fingerprint "$python")"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$pins" ]; then
        install_all "$python" || return 1
        printf '%s\n' "$pins" >"$stamp"
    fi
    export PATH="$root/.venv/bin:$PATH" VIRTUAL_ENV="$root/.venv"
}

new_environment() {
    local base="${PYTHON:-python3}"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "setup: $base is $("$base" -V 2>&1), and the pinned versions need Python 3.11 or newer:" \
            "name one with PYTHON=python3.11" >&2
        return 1
    }
    echo "setup: making $1 with $("$base" -V)"
    "$base" -m venv "$1"
}

# What the environment was made from; when any of it changes, pip looks again.
fingerprint() {
    { "$1" -V; cat launch/constraints.txt pyproject.toml launch/setup.sh; } | cksum
}

# torch and setuptools first: deepspeed is a source package that looks for both when it is built.
install_all() {
    local started=$SECONDS
    pip_install "$1" "1/2: torch and setuptools" setuptools torch || return 1
    pip_install "$1" "2/2: dart-train[$EXTRAS]" --no-build-isolation -e ".[$EXTRAS]" || return 1
    echo "setup: done in $((SECONDS - started)) s"
}

pip_install() {
    local python="$1" what="$2"
    shift 2
    echo "setup: $what"
    DS_BUILD_OPS=0 "$python" -m pip install --quiet --disable-pip-version-check --no-input \
        --constraint launch/constraints.txt "$@" </dev/null
}
