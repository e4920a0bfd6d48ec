#!/usr/bin/env bash
# Trains as a job of an existing Ray cluster: launch/ray_job.sh CONFIG run.name=NAME run.dir=/shared/runs [key=value ...]
#   RAY_API_SERVER_ADDRESS=http://head:8265   the cluster's dashboard
#   RAY_AUTH_TOKEN_PATH=FILE                  its token, if it has one; mode 600
#   ATTEMPT=2                                 Ray accepts each name only once: this is the next attempt, which continues
#                                             from the checkpoint
# Call it in the project's root: Ray copies the folder to every node, without what .gitignore and .rayignore name.
# `ray-rl submit ray-job CONFIG --follow` does the same, with checks before and attempts one after the other.
set -euo pipefail
name=
for word in "$@"; do
    case $word in
        run.name=*) name=${word#run.name=} ;;
    esac
done
if [ $# -eq 0 ] || [ -z "$name" ]; then
    echo "usage: $0 CONFIG run.name=NAME run.dir=/shared/runs [key=value ...]" >&2
    exit 2
fi
if [ -n "${RAY_AUTH_TOKEN_PATH:-}" ]; then
    export RAY_AUTH_MODE=token
fi
# Ray kills a stopped job after RAY_JOB_STOP_WAIT_TIME_S: run.grace_s of 120 s, in which the run saves, and 15 s more.
environment='{"env_vars": {"PYTHONUNBUFFERED": "1", "RAY_DEDUP_LOGS": "0", "RAY_JOB_STOP_WAIT_TIME_S": "135",
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}}'
exec ray job submit \
    --submission-id "$name-${ATTEMPT:-1}" \
    --working-dir . \
    --entrypoint-num-cpus 1 \
    --metadata-json "{\"run\": \"$name\"}" \
    --runtime-env-json "$environment" \
    -- ray-rl train "$@" cluster.address=auto --resume auto
