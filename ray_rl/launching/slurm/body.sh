# ---- the same for every run from here on -----------------------------------------------------------------------------
# Ray's head and the driver run on the node of this script, Ray's workers on all others. The driver's exit code decides:
#   0 done; 2 the configuration is wrong, never again; 75 saved, always again; else again, at most RETRIES times.
# USR1 (the time limit is near, preemption): the driver saves, and the job is queued again. TERM (`ray-rl stop`): the
# driver saves, and the job ends. Whatever ends a step of Ray ends the attempt.

say() { printf '%(%F %T)T %s\n' -1 "$*"; }
alive() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }
# A trap runs while bash waits, not while a command runs: all waiting is done here.
pause() { sleep 1 & wait $! || true; }

# ---- on the nodes ----------------------------------------------------------------------------------------------------

# Ray until it ends. Arguments: GPUs, then those of `ray start`.
ray_node() {
    local gpus=$1 cpus=${RAY_RL_CPUS:-${SLURM_CPUS_ON_NODE:-$(nproc)}} port=$RAY_RL_PORT names
    shift
    ulimit -Sn "$(ulimit -Hn)" || true
    # Libraries that see Slurm's variables believe that MPI has started them.
    mapfile -t names < <(compgen -e | grep -E '^(SLURM|SRUN|PMI)')
    unset "${names[@]}"
    exec ray start "$@" --log-color=false --num-gpus="$gpus" --num-cpus="$cpus" --block --disable-usage-stats \
        --min-worker-port=20000 --max-worker-port=21999 --dashboard-agent-listen-port=$((port + 3)) \
        --dashboard-agent-grpc-port=$((port + 4)) --runtime-env-agent-port=$((port + 5)) \
        --metrics-export-port=$((port + 6)) --node-manager-port=$((port + 7)) --object-manager-port=$((port + 8))
}

# The preflight, where one is asked for, then the driver, which takes the place of this shell.
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
    # A token for this attempt. Ray takes one of the environment before that of a file.
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

# One step for all nodes of a group, whatever their number. Arguments: nodes, GPUs of each, then options of srun.
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
    say "all $ALL_NODES nodes are there; starting the driver"
    export ATTEMPT_DIR
    srun "${ON_HEAD[@]}" --job-name=driver bash -c "$(declare -f preflight entrypoint driver_step); driver_step" \
        >>"$ATTEMPT_DIR/driver.log" 2>&1 &
    driver=$!
}

# ---- watching --------------------------------------------------------------------------------------------------------

# Whether all steps of Ray live; notes the first that does not.
steps_live() {
    local pid
    for pid in "${workers[@]}"; do alive "$pid" || note_lost "a worker node" workers; done
    alive "$head" || note_lost "Ray's head" head
    [ -z "$roll_call" ] || alive "$roll_call" || note_lost "a node, says the roll call," nodes
    [ -z "$lost" ]
}

note_lost() {
    [ -z "$lost" ] || return 0
    lost="$1 is lost"
    say "$lost; the end of $2.log:"
    tail -n 8 "$ATTEMPT_DIR/$2.log" | sed 's/^/    /' || true
}

# Until a test holds. False: not in time, a step is lost, or the attempt is told to end. Arguments: what for, the test.
wait_for() {
    local what=$1
    shift
    until "$@"; do
        [ -z "$asked" ] && steps_live || return 1
        if ((SECONDS >= READY_S)); then
            lost="no $what within launch.slurm.ready_timeout_s=$READY_S"
            say "$lost"
            return 1
        fi
        pause
    done
}

# USR1 to the driver alone: a signal to its step would reach the processes that it has started, too.
tell_driver() {
    if [ -s "$ATTEMPT_DIR/driver.pid" ]; then
        kill -USR1 "$(<"$ATTEMPT_DIR/driver.pid")" 2>/dev/null || true
    elif alive "$driver"; then
        kill -TERM "$driver" # in its preflight there is nothing to save
    fi
}

# Arguments: what to do once the driver has saved, and why.
ask() {
    [ -z "$asked" ] || return 0
    asked=$1
    say "$2: telling the driver to save and end"
    tell_driver
}

# The driver's exit code, in `code`. When Ray loses a node, the driver gets its time to save, and no more.
watch_driver() {
    local give_up=
    while alive "$driver"; do
        if [ -z "$give_up" ] && ! steps_live; then
            say "the driver may save for run.grace_s=$GRACE_S"
            tell_driver
            give_up=$((SECONDS + GRACE_S))
        fi
        if [ -n "$give_up" ] && ((SECONDS >= give_up)); then
            end_steps "$driver"
        fi
        pause
    done
    wait "$driver" && code=0 || code=$?
    say "the driver ended with exit code $code"
}

# ---- ending ----------------------------------------------------------------------------------------------------------

# At TERM srun ends its step, without a word to it: nothing of Ray outlives an attempt. What hangs goes with the job.
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

# How an attempt ended, for those after it.
record() { echo "$1" >"$ATTEMPT_DIR/outcome"; }

# Attempts that failed so far. One without an outcome was cut off: its first node died.
failures() {
    local count=0 folder outcome
    for folder in "$JOB_DIR"/attempt-*; do
        [ -d "$folder" ] || continue
        outcome=$(cat "$folder/outcome" 2>/dev/null || echo failed)
        [ "$outcome" != failed ] || count=$((count + 1))
    done
    echo "$count"
}

queue_again() {
    say "$1; queued again"
    clean_up
    scontrol requeue "$SLURM_JOB_ID" || say "Slurm refuses to queue it again; submit it anew, and the run goes on"
}

finish() {
    local failed
    # 138 is USR1 that came before the driver listened: nothing was begun.
    [ "$code" != 138 ] || [ -z "$asked$lost" ] || code=75
    if [ "$code" = 75 ] && [ -n "$lost" ]; then code=1; fi
    case $code in
        0) record "done" ;;
        2)
            record refused
            say "the configuration is wrong, and would be again; the end of driver.log:"
            tail -n 8 "$ATTEMPT_DIR/driver.log" | sed 's/^/    /'
            ;;
        *)
            if [ "$asked" = stop ]; then
                record stopped
                say "stopped; submit it again to go on"
            elif [ "$code" = 75 ]; then
                record saved
                queue_again saved
            else
                record failed
                failed=$(failures)
                if ((failed > RETRIES)); then
                    say "failed $failed times: given up, as launch.retries=$RETRIES"
                else
                    queue_again "failed $failed times, of launch.retries=$RETRIES"
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
    say "failed $failed_before times: given up, as launch.retries=$RETRIES"
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
