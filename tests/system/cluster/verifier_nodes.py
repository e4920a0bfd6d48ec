"""Scores on a Ray cluster of two nodes and loses the second: `python -m tests.system.cluster.verifier_nodes LOGS`.

A process of its own, since a process is connected to one cluster at a time. Prints one JSON object.
"""

import asyncio
import json
import os
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Thread

from ray_rl.cluster.environment import prepare_environment

ROOT = Path(__file__).parents[3]
THERE = 2
"""CPUs of the other node."""
GROUPS = 8
LIMIT_S = 120


def main(logs: str) -> None:
    prepare_environment(local=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    import ray
    from ray.cluster_utils import Cluster

    node = {"object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 1, "include_dashboard": False})
    other = cluster.add_node(num_cpus=THERE, **node)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        answer = observe(Path(logs), partial(cluster.remove_node, other, allow_graceful=False))
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(answer))


def observe(logs: Path, lose_the_other_node) -> dict[str, object]:
    """Where the calls of a pool ran, and how the rewards of a run survived the loss of the other node."""
    from ray_rl.cluster.verifiers import other_nodes, workers_elsewhere
    from ray_rl.config.rewards import MathVerify
    from ray_rl.isolation.pool import Pool
    from ray_rl.rewards.combine import build_rewards

    nodes = other_nodes()
    elsewhere = partial(workers_elsewhere, nodes=nodes, logs=logs)
    pool = Pool(1, others=elsewhere(1 << 30))
    with closing(pool):
        sleeps = [pool.submit("time:sleep", args=[1.0], timeout_s=60) for _ in range(1 + THERE)]  # all are busy
        parents = [pool.submit("os:getppid", timeout_s=60) for _ in range(1 + THERE)]
        errors = [str(call.exception(timeout=LIMIT_S)) for call in sleeps]
        found = [call.result(timeout=LIMIT_S) for call in parents]
        refused = pool.submit("math:sqrt", args=[-1.0], timeout_s=60).exception(timeout=LIMIT_S)
    with closing(build_rewards([MathVerify(kind="math_verify")], elsewhere=elsewhere)) as rewards:
        before = asyncio.run(score(rewards))
        processes = [rewards.metrics()[-1].value]
        losing = Thread(target=lose_the_other_node)
        losing.start()
        until_s, after = time.monotonic() + LIMIT_S, []
        while not after or (processes[-1] == processes[0] and time.monotonic() < until_s):  # Ray notices it late
            after += asyncio.run(score(rewards))
            processes.append(rewards.metrics()[-1].value)
        losing.join(timeout=LIMIT_S)
    return {
        "processes_there": [node.processes for node in nodes],
        "errors": errors,
        "here": sum(parent == os.getpid() for parent in found),
        "there": len({parent for parent in found if parent != os.getpid()}),
        "refused": str(refused),
        "scores": [before, after],
        "processes": [processes[0], processes[-1]],
    }


async def score(rewards) -> list[float]:
    """The rewards of groups of one right and one wrong answer, all of which need algebra."""
    from ray_rl.types import Prompt
    from tests.make import completion, group

    answers = [rf"So \boxed{{{text}+x^2}}." for text in ("1", "2")]
    asked = [
        rewards.score(
            group(*(completion(3, each) for each in answers), prompt=Prompt(f"{i}", (1,), "?", {"answer": "x^2+1"}))
        )
        for i in range(GROUPS)
    ]
    async with asyncio.timeout(LIMIT_S):
        return [rollout.reward for scored, _ in await asyncio.gather(*asked) for rollout in scored.rollouts]


if __name__ == "__main__":
    main(sys.argv[1])
