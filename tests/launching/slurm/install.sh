#!/usr/bin/env bash
# Slurm of the distribution, for tests/slurm. Quick where it is there already. Where it cannot be had, the tests say so
# and are skipped: this never fails a build.
set -uo pipefail

packages=(slurm-wlm slurmd slurmctld slurm-client munge libslurm-dev gcc iproute2 util-linux)
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "tests/launching/slurm/install.sh: needs root and apt-get; the tests of Slurm will be skipped"
    exit 0
fi
if dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
for attempt in 1 2 3; do
    # The lists may be old: they are asked for anew only where the packages are not found.
    timeout 300 apt-get install -y --no-install-recommends "${packages[@]}" >/tmp/ray-rl-slurm-install.log 2>&1 && exit 0
    echo "tests/launching/slurm/install.sh: attempt $attempt of 3 failed: $(tail -n 1 /tmp/ray-rl-slurm-install.log)"
    timeout 120 apt-get update >/dev/null 2>&1
    sleep $((attempt * 3))
done
echo "tests/launching/slurm/install.sh: no Slurm; its tests will be skipped"
