# ---- the same for every run from here on -----------------------------------------------------------------------------
# Ray's head and the driver run on the node of this script, Ray's workers on all other nodes. The driver's exit code
# decides what happens to the job:
#   0      the run is done, and the job ends
#   2      the configuration is wrong, and the job is not queued again
#   75     the run is saved, and the job is always queued again
#   other  the attempt failed, and the job is queued again at most RETRIES times
# On USR1 (the time limit is near, or preemption) the driver saves, and the job is queued again. On TERM (`ray-rl stop`)
# the driver saves, and the job ends. When a step of Ray ends, for whatever reason, the attempt ends, too.

say() { printf '%(%F %T)T %s\n' -1 "$*"; }
alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }
# Sleeps for a second. Bash runs a trap during `wait`, but not while a command runs in the foreground. Every pause of
# this script is therefore made here.
pause() { sleep 1 & wait $! || true; }

# ---- on the nodes ----------------------------------------------------------------------------------------------------

# Runs Ray in place of this shell, until Ray ends. Arguments: the number of GPUs, then the options of `ray start`.
ray_node() {
    local gpus=$1 cpus=${RAY_RL_CPUS:-${SLURM_CPUS_ON_NODE:-$(nproc)}} port=$RAY_RL_PORT names
    shift
    ulimit -Sn "$(ulimit -Hn)" || true
    # Without this, libraries that find Slurm's variables assume that MPI has started them.
    mapfile -t names < <(compgen -e | grep -E '^(SLURM|SRUN|PMI)')
    unset "${names[@]}"
    exec ray start "$@" --log-color=false --num-gpus="$gpus" --num-cpus="$cpus" --block --disable-usage-stats \
        --min-worker-port=20000 --max-worker-port=21999 --dashboard-agent-listen-port=$((port + 3)) \
        --dashboard-agent-grpc-port=$((port + 4)) --runtime-env-agent-port=$((port + 5)) \
        --metrics-export-port=$((port + 6)) --node-manager-port=$((port + 7)) --object-manager-port=$((port + 8))
}

# Runs the preflight if one is configured, then the driver, which replaces this shell.
driver_step() {
    preflight || exit
    echo $$ >"$ATTEMPT_DIR/driver.pid"
    entrypoint
}

# ---- starting --------------------------------------------------------------------------------------------------------

address_of() {
    local address
    address=$(getent ahostsv4 "$1" | awk '$1 !~ /^127\./ { print $1; exit }') || true
    [ -n "$address" ] || address=$(hostname -I | awk '{ print $1 }')
    echo "$address"
}

prepare() {
    mkdir -p "$ATTEMPT_DIR"
    ln -sfn "${ATTEMPT_DIR##*/}" "$JOB_DIR/latest"
    # Every attempt has its own token, in a file. Ray prefers a token in the environment, so that one is removed.
    unset RAY_AUTH_TOKEN RAY_ADDRESS
    (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$ATTEMPT_DIR/token")
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$ATTEMPT_DIR/token
    head_name=$SLURMD_NODENAME
    head_address=$(address_of "$head_name")
    # Steps share the nodes' CPUs, GPUs and memory, and are not bound to single cores.
    STEP+=(--export=ALL --overlap --cpu-bind=none --kill-on-bad-exit=1)
    [ -z "$CONTAINER_MOUNTS" ] || STEP+=(--container-mounts="$CONTAINER_MOUNTS,$ATTEMPT_DIR:$ATTEMPT_DIR")
    ON_HEAD=(--nodes=1 --ntasks=1 --nodelist="$head_name" "${STEP[@]}")
}

start_head() {
    local gpus=$GPUS
    ((CPU_NODES == 0)) || gpus=0
    say "attempt $ATTEMPT: Ray's head on $head_name ($head_address:$RAY_RL_PORT); logs in $ATTEMPT_DIR"
    srun "${ON_HEAD[@]}" --job-name=ray-head bash -c "$(declare -f ray_node); ray_node \"\$@\"" ray_node "$gpus" \
        --head --node-ip-address="$head_address" --port="$RAY_RL_PORT" --ray-client-server-port=$((RAY_RL_PORT + 1)) \
        --dashboard-port=$((RAY_RL_PORT + 2)) >>"$ATTEMPT_DIR/head.log" 2>&1 &
    head=$!
}

head_answers() { (exec 3<>"/dev/tcp/$head_address/$RAY_RL_PORT") 2>/dev/null; }

# Starts Ray's workers on all nodes of a group, as one step. Without nodes it starts nothing.
# Arguments: the number of nodes, the number of GPUs per node, then options of srun.
start_group() {
    local nodes=$1 gpus=$2
    shift 2
    ((nodes > 0)) || return 0
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 "$@" "${STEP[@]}" --job-name=ray-workers --label \
        bash -c "$(declare -f ray_node); ray_node \"\$@\"" ray_node "$gpus" --address="$head_address:$RAY_RL_PORT" \
        >>"$ATTEMPT_DIR/workers.log" 2>&1 &
    workers+=($!)
}

start_workers() {
    if ((CPU_NODES == 0)); then
        start_group $((NODES - 1)) "$GPUS" --exclude="$head_name"
    else
        start_group "$NODES" "$GPUS" --het-group=1
        start_group $((CPU_NODES - 1)) 0 --het-group=0 --exclude="$head_name"
    fi
    export RAY_ADDRESS=$head_address:$RAY_RL_PORT
    srun "${ON_HEAD[@]}" --job-name=roll-call python3 -m ray_rl.cli.roll_call "$ALL_NODES" \
        --timeout-s "$READY_S" --ready "$ATTEMPT_DIR/ready" >>"$ATTEMPT_DIR/nodes.log" 2>&1 &
    roll_call=$!
}

start_driver() {
    say "all $ALL_NODES nodes have joined; starting the driver"
    export ATTEMPT_DIR
    srun "${ON_HEAD[@]}" --job-name=driver bash -c "$(declare -f preflight entrypoint driver_step); driver_step" \
        >>"$ATTEMPT_DIR/driver.log" 2>&1 &
    driver=$!
}

# ---- watching --------------------------------------------------------------------------------------------------------

# Returns 0 if all steps of Ray are alive. Otherwise it notes and reports the first step that has ended, and returns 1.
steps_live() {
    local pid
    for pid in "${workers[@]}"; do alive "$pid" || note_lost "a worker node" workers; done
    alive "$head" || note_lost "Ray's head" head
    [ -z "$roll_call" ] || alive "$roll_call" || note_lost "a node (see nodes.log)" nodes
    [ -z "$lost" ]
}

# Notes in `lost` what is lost, and prints the last lines of its log. Only the first loss of an attempt counts.
# Arguments: what is lost, and the name of its log.
note_lost() {
    [ -z "$lost" ] || return 0
    lost="$1 is lost"
    say "$lost; the last lines of $2.log:"
    tail -n 8 "$ATTEMPT_DIR/$2.log" | sed 's/^/    /' || true
}

# Waits until a test succeeds. Returns 1 if READY_S seconds have passed since the script started, if a step of Ray is
# lost, or if the attempt was told to end. Arguments: what must be ready, then the command of the test.
wait_for() {
    local what=$1
    shift
    until "$@"; do
        [ -z "$asked" ] && steps_live || return 1
        if ((SECONDS >= READY_S)); then
            lost="$what: not ready within launch.slurm.ready_timeout_s=$READY_S"
            say "$lost; see the logs in $ATTEMPT_DIR"
            return 1
        fi
        pause
    done
}

# Tells the driver to save and end. Only the driver gets USR1: a signal to its step would also reach the processes that
# the driver has started.
tell_driver() {
    if [ -s "$ATTEMPT_DIR/driver.pid" ]; then
        kill -USR1 "$(<"$ATTEMPT_DIR/driver.pid")" 2>/dev/null || true
    elif alive "$driver"; then
        kill -TERM "$driver" # the preflight is still running, and there is nothing to save
    fi
}

# Tells the driver to save and end, and notes in `asked` what follows. Only the first request of an attempt counts.
# Arguments: what follows once the driver has saved (requeue or stop), and the signal that the script received.
ask() {
    [ -z "$asked" ] || return 0
    asked=$1
    say "received $2: telling the driver to save and end"
    tell_driver
}

# Waits until the driver has ended, and stores its exit code in `code`. If a step of Ray is lost, the driver has GRACE_S
# seconds to save; after that its step is ended.
watch_driver() {
    local deadline=
    while alive "$driver"; do
        if [ -z "$deadline" ] && ! steps_live; then
            say "the driver has run.grace_s=$GRACE_S seconds to save"
            tell_driver
            deadline=$((SECONDS + GRACE_S))
        fi
        if [ -n "$deadline" ] && ((SECONDS >= deadline)); then
            end_steps "$driver"
        fi
        pause
    done
    wait "$driver" && code=0 || code=$?
    say "the driver ended with exit code $code"
}

# ---- ending ----------------------------------------------------------------------------------------------------------

# Ends steps and waits until they have ended, at most 20 s. Arguments: the process ids of their srun; empty ones are
# skipped. On TERM, srun ends all processes of its step without asking them first, so nothing of Ray outlives an
# attempt. If srun itself hangs, it is killed, and Slurm ends its step at the end of the job.
end_steps() {
    local pid until=$((SECONDS + 20)) left
    for pid in "$@"; do alive "$pid" && kill -TERM "$pid"; done
    while ((SECONDS < until)); do
        left=
        for pid in "$@"; do alive "$pid" && left=$pid; done
        [ -n "$left" ] || return 0
        pause
    done
    for pid in "$@"; do alive "$pid" && kill -KILL "$pid"; done
    return 0
}

clean_up() {
    end_steps "$driver" "$roll_call" "${workers[@]}" "$head"
    rm -f "$ATTEMPT_DIR/token"
}

# Writes down how this attempt ended, for later attempts, which count the failures.
# Argument: done, refused, stopped, saved or failed.
record() { echo "$1" >"$ATTEMPT_DIR/outcome"; }

# Prints the number of attempts that have failed so far. An attempt without an outcome counts as failed: it was cut off,
# for example because its first node died.
failures() {
    local count=0 folder outcome
    for folder in "$JOB_DIR"/attempt-*; do
        [ -d "$folder" ] || continue
        outcome=$(cat "$folder/outcome" 2>/dev/null || echo failed)
        [ "$outcome" != failed ] || count=$((count + 1))
    done
    echo "$count"
}

# Queues the job again. Argument: why.
queue_again() {
    say "$1; queued again"
    clean_up
    scontrol requeue "$SLURM_JOB_ID" ||
        say "Slurm refused to queue the job again; submit it again to continue from the newest checkpoint"
}

# Says that the job is not queued again. Arguments: the number of failed attempts, and the folder of the logs.
failed_too_often() {
    say "failed $1 times, more than launch.retries=$RETRIES allows; not queued again." \
        "See the logs in $2, then submit the job again"
}

# Ends the attempt with `code`, and queues the job again where that is due.
finish() {
    local failed
    # 138 means that USR1 ended the driver before it handled signals: no step was trained, and there is nothing to save.
    [ "$code" != 138 ] || [ -z "$asked$lost" ] || code=75
    if [ "$code" = 75 ] && [ -n "$lost" ]; then code=1; fi
    case $code in
        0) record "done" ;;
        2)
            record refused
            say "the configuration is wrong, so the job is not queued again; the last lines of driver.log:"
            tail -n 8 "$ATTEMPT_DIR/driver.log" | sed 's/^/    /'
            ;;
        *)
            if [ "$asked" = stop ]; then
                record stopped
                say "stopped; submit the job again to continue"
            elif [ "$code" = 75 ]; then
                record saved
                queue_again saved
            else
                record failed
                failed=$(failures)
                if ((failed > RETRIES)); then
                    failed_too_often "$failed" "$ATTEMPT_DIR"
                else
                    queue_again "failed: retry $failed of launch.retries=$RETRIES"
                fi
            fi
            ;;
    esac
    exit "$code"
}

ALL_NODES=$((NODES + CPU_NODES))
ATTEMPT=${SLURM_RESTART_COUNT:-0}
JOB_DIR=$PWD/slurm-logs/$SLURM_JOB_NAME-$SLURM_JOB_ID
ATTEMPT_DIR=$JOB_DIR/attempt-$ATTEMPT
asked='' lost='' head='' workers=() roll_call='' driver='' code=1

failed_before=$(failures)
if ((failed_before > RETRIES)); then
    failed_too_often "$failed_before" "$JOB_DIR"
    exit 1
fi
prepare
trap clean_up EXIT
trap 'ask requeue "USR1"' USR1
trap 'ask stop "TERM"' TERM
start_head
if wait_for "Ray head" head_answers && start_workers && wait_for "$ALL_NODES nodes" test -e "$ATTEMPT_DIR/ready"; then
    start_driver
    [ -z "$asked" ] || tell_driver
    watch_driver
elif [ -z "$lost" ]; then
    code=75
fi
finish
