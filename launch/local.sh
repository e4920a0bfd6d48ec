#!/usr/bin/env bash
# Trains on this machine, and continues where the run stopped: launch/local.sh CONFIG [key=value ...]
# The Ray cluster is the run's own: it listens on loopback, and ends with it. Exit codes: 0 done, 1 failed,
# 2 the configuration is wrong, 75 told to stop and saved: run me again.
# The same with a configuration's own launch section: ray-rl render local CONFIG [key=value ...]
set -euo pipefail
if [ $# -eq 0 ]; then
    echo "usage: $0 CONFIG [key=value ...]" >&2
    exit 2
fi
# With Ray's default niceness of 15, any other program on the machine would starve the workers.
export RAY_worker_niceness=0
export RAY_DEDUP_LOGS=0 RAY_JOB_STOP_WAIT_TIME_S=135 RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
exec ray-rl train "$@" --resume auto
