#!/usr/bin/env bash
# Makes .venv what the requirements say: docker/setup.sh cpu|gpu [test]. The Makefile calls it before every target.
# When nothing changed since the last time it returns at once.
set -euo pipefail
cd "$(dirname "$0")/.."

accelerator=${1:-}
python=${PYTHON:-python3}
venv=.venv
# Without byte-code every process of every run would compile its libraries again.
unset PYTHONDONTWRITEBYTECODE

say() { echo "setup: $*"; }
fail() { echo "setup: error: $*" >&2; exit 1; }

# stamp_of FILES...: changes when any of them, the project's metadata, these scripts or the place of the checkout does.
stamp_of() { { pwd; cat "$@" pyproject.toml docker/setup.sh docker/install.sh; } | sha256sum; }
is_current() { [ "$(cat "$1" 2>/dev/null)" = "$2" ] && [ -x "$venv/bin/ray-rl" ]; }

check_machine() {
    [ "$(uname -sm)" = "Linux x86_64" ] || fail "the locked packages are for Linux on x86_64; this is $(uname -sm)"
    command -v "$python" >/dev/null || fail "$python is not there; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$python is $("$python" --version 2>&1); 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3.11"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"
    [ "$accelerator" = gpu ] || "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        fail "the library libnuma.so.1 is not there; vLLM's CPU build needs it. On Debian and Ubuntu: apt-get install libnuma1"
}

make_venv() {
    local other
    for other in cpu gpu; do
        if [ "$other" != "$accelerator" ] && [ -e "$venv/setup-$other" ]; then
            fail "$venv holds the $other packages, which cannot be installed together with the $accelerator ones; remove it first: rm -r $venv"
        fi
    done
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then return 0; fi
    say "making $venv with $("$python" --version) ..."
    "$python" -m venv --clear "$venv"
}

install_project() {
    say "installing ray-rl itself ..."
    if [ -x "$venv/bin/uv" ] && "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e .; then
        return 0
    fi
    "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
}

# Also writes the byte-code of what runs import, which the installation leaves out to be quick.
check_imports() {
    say "importing torch, transformers, DeepSpeed, Ray and vLLM for the first time ..."
    "$venv/bin/python" - >"$venv/setup.log" 2>&1 <<'PY' || { cat "$venv/setup.log" >&2; fail "the installed packages do not import; remove $venv and try again"; }
import deepspeed, ray, torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from vllm.v1.engine import async_llm
PY
}

case $accelerator in
    cpu | gpu) ;;
    *) fail "docker/setup.sh takes cpu or gpu and then perhaps test; got '$*'" ;;
esac
files=("docker/requirements-$accelerator.txt")
stamp=$(stamp_of "${files[@]}")
if [ "${2:-}" = test ]; then
    files+=(docker/requirements-test.txt)
    test_stamp=$(stamp_of "${files[@]}")
    if is_current "$venv/setup-$accelerator-test" "$test_stamp"; then exit 0; fi
elif is_current "$venv/setup-$accelerator" "$stamp"; then
    exit 0
fi

started=$SECONDS
check_machine
make_venv
docker/install.sh "$venv" "${files[@]}"
install_project
check_imports
echo "$stamp" >"$venv/setup-$accelerator"
if [ "${2:-}" = test ]; then echo "$test_stamp" >"$venv/setup-$accelerator-test"; fi
say "$venv is ready after $((SECONDS - started)) s; to have its commands in the path: source $venv/bin/activate"
