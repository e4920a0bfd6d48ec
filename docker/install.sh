#!/usr/bin/env bash
# Installs locked requirements into a virtual environment that exists, fast and with bounded retries:
#
#     docker/install.sh VENV REQUIREMENTS.txt...
#
# The Makefile and the images both call it. The files hold every package that is needed, so nothing is resolved here
# (--no-deps) and what is not in them cannot come in. uv does the work, since it is several times as fast as pip
# (it unpacks in parallel and leaves byte-compiling to the first import); where uv cannot, pip does.
set -euo pipefail

UV=uv==0.13.8
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

if [ $# -lt 2 ]; then
    echo "usage: docker/install.sh VENV REQUIREMENTS.txt..." >&2
    exit 2
fi
python=$1/bin/python
uv=$1/bin/uv
shift
requirements=()
for file in "$@"; do requirements+=(-r "$file"); done
# DeepSpeed comes as source: compile none of its operators now (the ones that a run uses are compiled at its start).
export DS_BUILD_OPS=0 UV_HTTP_TIMEOUT=120
# A certificate bundle that pip was told about is one that uv needs too.
if [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"; fi

say() { echo "setup: $*"; }

pip() { "$python" -m pip "$@" --quiet --quiet --disable-pip-version-check --retries 3; }

# The CPU build of torch, "torch==X+cpu", is not on PyPI. A machine may have it in a place that only pip's own
# configuration knows; elsewhere it is on PyTorch's CPU index. The "+cpu" keeps either way from taking a CUDA build.
torch_cpu() {
    local pin
    pin=$(grep -hE '^torch==.*\+cpu' "$@" || true)
    if [ -z "$pin" ] || "$python" -c "import importlib.metadata as m, sys; sys.exit(m.version('torch') != '${pin#torch==}')" 2>/dev/null; then
        return 0
    fi
    say "installing $pin ..."
    if pip install --no-deps --no-compile "$pin" 2>/dev/null; then return 0; fi
    say "pip's own configuration has no $pin; taking it from $TORCH_CPU_INDEX ..."
    if pip install --no-deps --no-compile --extra-index-url "$TORCH_CPU_INDEX" "$pin"; then return 0; fi
    echo "setup: error: could not install $pin; pip needs $TORCH_CPU_INDEX or a mirror of it (pip config set)" >&2
    return 1
}

all() {
    if pip install --no-compile "$UV"; then
        local attempt
        for attempt in 1 2; do
            if "$uv" pip install --quiet --python "$python" --no-deps "${requirements[@]}"; then return 0; fi
            say "uv failed (attempt $attempt of 2)"
        done
    fi
    say "falling back to pip, which takes some minutes ..."
    pip install --no-deps --no-compile "${requirements[@]}"
}

torch_cpu "$@"
say "installing $(cat "$@" | grep -c '==') packages (one to three minutes when none is in the cache) ..."
all
