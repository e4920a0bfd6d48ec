"""Placement, and the errors of workers, over light actors on a real cluster."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from ray_rl.cluster.calls import Loss
from ray_rl.errors import ClusterError, ConfigError, TrainingError, WorkerLost
from ray_rl.planner.plan import plan
from tests import make
from tests.system.cluster.light import Light

pytestmark = pytest.mark.usefixtures("connected")

NODES = 2
GPUS_PER_NODE = 2
CPUS_PER_NODE = 8


@pytest.fixture
def gpu_plan(make_config):
    def make(*, actors=1, engines=1, tensor_parallel=1, references=0, colocate=(), nodes=NODES):
        config = make_config(
            train={"workers": actors},
            rollout={"engines": engines, "tensor_parallel": tensor_parallel},
            reference={"workers": max(1, references)},
            algorithm={"kl": {"coefficient": 0.1 if references else 0.0}},
            cluster={
                "accelerator": "gpu",
                "nodes": nodes,
                "gpus_per_node": GPUS_PER_NODE,
                "colocate": [list(roles) for roles in colocate],
            },
        )
        return plan(config)

    return make


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def light(connected, logs):
    """Starts teams that hold no model, and ends them."""
    from ray_rl.cluster.shell import Setting, Worker
    from ray_rl.cluster.teams import Team

    teams = []

    def start(role, count, *, options=None, timeout_s=60.0, logs=logs):
        setting = Setting(str(logs), 1, {"RAY_RL_TEST": "here"})
        taken = options or [{"num_cpus": 0.1}] * count
        team = Team(
            role,
            count,
            launch=lambda rank: Worker.launch(f"{role}-{rank}", setting, taken[rank]),
            build=lambda member: Light(member.rank),
            logs=logs,
            timeout_s=timeout_s,
            start_timeout_s=60.0,
        )
        teams.append(team)
        return team

    yield start
    for team in teams:
        team.kill()


@pytest.fixture(scope="module")
def two_workers(light):
    """Two workers that stay alive."""
    return light("actor", 2)


@pytest.fixture
async def pair(two_workers):
    """The workers, loaded, for the event loop of one test."""
    if two_workers.is_loaded:
        two_workers.loss = Loss()
    else:
        await two_workers.load()
    return two_workers


def wait_until_all_is_free():
    import ray

    wanted = {"GPU": NODES * GPUS_PER_NODE, "CPU": NODES * CPUS_PER_NODE}
    give_up_s = time.monotonic() + 20
    free = {}
    while time.monotonic() < give_up_s:
        resources = ray.available_resources()
        free = {name: resources.get(name, 0) for name in wanted}
        if free == wanted:
            return
        time.sleep(0.1)
    raise AssertionError(f"free: {free}, wanted: {wanted}")


def node_of(slot):
    import ray

    return ray.util.placement_group_table(slot.group)["bundles_to_node_id"][slot.bundle]


def test_neighbouring_ranks_share_a_node(gpu_plan):
    from ray_rl.cluster.placement import placed

    with placed(gpu_plan(actors=3, engines=1), timeout_s=30) as slots:
        assert {role: len(there) for role, there in slots.items()} == {"actor": 3, "rollout": 1}
        assert sorted(slot.bundle for slot in slots["actor"]) == [0, 1, 2]
        first, second, third = (node_of(slot) for slot in slots["actor"])
    assert first != third
    assert second in (first, third)


def test_an_engine_gets_its_tensor_parallel_gpus_on_one_node(gpu_plan):
    from ray_rl.cluster.placement import placed

    with placed(gpu_plan(actors=1, engines=1, tensor_parallel=2), timeout_s=30) as slots:
        (engine,) = slots["rollout"]
        assert engine.gpus == 2
        assert node_of(engine) != node_of(slots["actor"][0])


async def test_colocated_roles_run_on_the_gpu_of_their_rank(gpu_plan, light):
    from ray_rl.cluster.placement import placed

    layout = gpu_plan(actors=2, references=2, colocate=[("actor", "reference")])
    with placed(layout, timeout_s=30) as slots:
        places = []
        for role in ("actor", "reference"):
            team = light(f"colocated-{role}", 1, options=[slots[role][1].options()])
            await team.load()
            places += await team.all(Light.place)
    actor, reference = places
    assert actor == reference
    assert len(actor.gpus) == 1


def test_what_was_reserved_is_given_back(gpu_plan):
    from ray_rl.cluster.placement import placed

    with placed(gpu_plan(actors=3, engines=1), timeout_s=30):
        pass
    wait_until_all_is_free()


def test_a_plan_that_does_not_fit_fails_within_its_limit_and_says_what_was_wanted_and_what_is_there(gpu_plan):
    from ray_rl.cluster.placement import placed

    wait_until_all_is_free()
    start_s = time.monotonic()
    with (
        pytest.raises(ClusterError) as raised,
        placed(gpu_plan(actors=3, engines=2, tensor_parallel=2, nodes=4), timeout_s=2),
    ):
        pass
    assert time.monotonic() - start_s < 10
    message = str(raised.value)
    assert message.startswith("placement was not possible within cluster.start_timeout_s=2. Wanted: ")
    assert "actor: 3 x {'CPU': 1.0, 'GPU': 1}; rollout: 2 x {'CPU': 2.0, 'GPU': 2}; 4 nodes wanted, 2 avail" in message
    assert message.count("has 2 of 2 GPU free, 8 of 8 CPU free") == NODES
    assert "node 2: wanted 2 GPU, 2 CPU; there is no such node" in message
    wait_until_all_is_free()


def test_a_node_whose_gpus_are_held_by_others_is_named_with_what_is_free(gpu_plan):
    from ray_rl.cluster.placement import placed

    wait_until_all_is_free()
    with (
        placed(gpu_plan(actors=2, engines=1), timeout_s=30),
        pytest.raises(ClusterError) as raised,
        placed(gpu_plan(actors=1, engines=1), timeout_s=2),
    ):
        pass
    message = str(raised.value)
    assert "node 0: wanted 2 GPU, 2 CPU; " in message
    assert "has 0 of 2 GPU free, 6 of 8 CPU free" in message


def test_more_gpus_than_the_cluster_has_are_refused_before_anything_is_placed(gpu_plan, connected):
    from ray_rl.cluster.session import require_gpus

    with pytest.raises(ConfigError) as raised:
        require_gpus(gpu_plan(actors=3, engines=2, nodes=3), connected.cluster.address)
    assert "the roles ask for 5 GPUs (actor 3, rollout 2) and the Ray cluster at " in str(raised.value)
    assert "has 4" in str(raised.value)
    assert "  node 2: wanted 1 GPU, 1 CPU; there is no such node" in str(raised.value)
    require_gpus(gpu_plan(actors=3, engines=1), connected.cluster.address)


def test_an_address_where_no_cluster_is_fails_at_once_and_says_so(connected):
    from ray_rl.cluster.session import ray_session

    with pytest.raises(ClusterError) as raised, ray_session("127.0.0.1:1", plan(connected)):
        pass
    assert str(raised.value).startswith("cluster.address=127.0.0.1:1: no Ray started or answers there: ")


async def test_a_worker_has_its_variables_and_writes_its_own_log_that_others_cannot_read(pair, logs):
    assert await pair.first(Light.variable, "RAY_RL_TEST") == "here"
    assert await pair.first(Light.variable, "OMP_NUM_THREADS") == "1"
    await pair.first(Light.say, "what a library printed")
    log = logs / "actor-0.log"
    assert "what a library printed" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


async def test_a_process_is_titled_by_its_worker_and_by_what_it_does(pair):
    titles = await pair.all(title)
    assert titles == ["ray::actor-0.title", "ray::actor-1.title"]


async def test_a_team_answers_by_rank(pair):
    assert await pair.all(Light.rank) == [0, 1]


async def test_an_error_of_ours_arrives_as_itself(pair):
    error = TrainingError("optimizer step 3: the loss is nan")
    with pytest.raises(TrainingError) as raised:
        await pair.all(Light.second_fails, error)
    assert type(raised.value) is TrainingError
    assert str(raised.value) == "actor-1: optimizer step 3: the loss is nan"


async def test_any_other_error_of_a_worker_says_what_it_was_and_quotes_its_log(pair, logs):
    await pair.all(Light.say, "half way")
    with pytest.raises(ClusterError) as raised:
        await pair.all(Light.second_fails, OSError(28, "No space left on device"))
    lines = str(raised.value).splitlines()
    assert lines[0] == "second fails: actor-1 raised OSError: [Errno 28] No space left on device"
    assert lines[1:] == [f"Last lines of {logs}/actor-1.log:", "half way"]


async def test_the_shares_of_the_workers_become_one_array(pair):
    from ray_rl.cluster.roles import whole

    rows, length = 5, 3
    batch = make.batch((rows, length), tokens_RT=np.arange(rows * length, dtype=np.int32).reshape(rows, length))
    logprobs_RT = whole(batch, await pair.all(Light.scores, batch))
    assert logprobs_RT.dtype == np.float32
    assert logprobs_RT.tolist() == (-batch.tokens_RT).tolist()


async def test_a_call_that_takes_too_long_names_the_worker_and_the_limit(light):
    hurried = light("hurried", 2, timeout_s=1.0)
    await hurried.load()
    with pytest.raises(ClusterError) as raised:
        await hurried.all(Light.second_sleeps, 5)
    assert str(raised.value) == "second sleeps: hurried-1 did not finish within 1 s; see the logs of the run"


async def test_a_worker_that_dies_is_reported_with_role_rank_cause_and_last_words_although_its_peer_complained_first(
    light, logs
):
    team = light("reference", 2)
    await team.load()
    await team.first(Light.say, "allocating 14 GiB")
    start_s = time.monotonic()
    with pytest.raises(ClusterError) as raised:
        await team.all(Light.first_dies_late, "killed", after_s=0.5)
    assert time.monotonic() - start_s < 30
    message = str(raised.value)
    assert re.match(
        r"first dies late: reference-0 died on [\d.]+ \(process \d+: SYSTEM_ERROR, .*\)\. Usual causes: ", message
    )
    assert message.endswith(f"Last lines of {logs}/reference-0.log:\nallocating 14 GiB\nkilled")
    assert "\x1b" not in message


async def test_new_workers_take_the_place_of_one_that_died(light):
    team = light("critic", 2)
    await team.load()
    with pytest.raises(WorkerLost):
        await team.all(Light.first_dies_late, "killed", after_s=0.0)
    assert not await team.is_well()
    await team.restart()
    assert await team.is_well()
    assert await team.all(Light.rank) == [0, 1]


async def test_a_worker_that_cannot_start_says_why(light, tmp_path):
    (tmp_path / "taken").write_text("a file where the folder of the logs should be")
    with pytest.raises(ClusterError) as raised:
        await light("taken", 1, logs=tmp_path / "taken").load()
    message = str(raised.value)
    assert message.startswith("start: taken-0 could not be started: ")
    assert "FileExistsError" in message
    assert "out of memory" not in message
    assert "\x1b" not in message


def title(_):
    """The title of the process, which Ray fills up with zeros."""
    return Path("/proc/self/cmdline").read_text().rstrip("\0")
