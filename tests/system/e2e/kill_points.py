"""Where a run is killed: each a moment after which a careless implementation would lose or mix something."""

import os
import subprocess
from dataclasses import dataclass

from tests.test_architecture import ROOT


@dataclass(frozen=True, eq=False)
class Point:
    """One moment, as `kill_hook/sitecustomize.py` takes it. Two stages may have points that look alike: each is one."""

    what: str
    at: dict


def file(event: str, path: str, count: int = 1) -> Point:
    """Before an operation on a file of the run folder; a rename by its target."""
    return Point(f"before {event} {path}{_ordinal(count)}", {"event": event, "path": path, "count": count})


def call(name: str, count: int = 1, when: str = "before") -> Point:
    """Before or after a call."""
    what = f"{when} {name.partition(':')[2]}{_ordinal(count)}"
    return Point(what, {"call": name, "count": count, "when": when})


def _ordinal(count: int) -> str:
    return f" no. {count}" if count > 1 else ""


PUBLISH = "ray_rl.weight_sync.audit:AuditedWeights.publish"
SEND = "ray_rl.weight_sync.senders.shared_memory:SharedMemorySender.send"
RECEIVE = "ray_rl.weight_sync.receivers.gloo:GlooReceiver.receive_weights"
LOG = "ray_rl.metrics.run:Run.log"

START = [
    file("os.mkdir", "runs/kills$"),
    file("open", "/kills/lock$"),
    file("os.mkdir", "/kills/logs$"),
    file("open", "/config.yaml.partial$"),
    file("os.rename", "/config.yaml$"),
    file("os.rename", "/environment.json$"),
    file("os.rename", "/newest_checkpoint.json$"),
    file("open", "/kills/metrics.jsonl$"),
    file("open", "/events.out.tfevents"),
    file("open", "/kills/trace.json$"),
    call("ray_rl.cluster.start:started_workers"),
    call("ray_rl.loops.checkpoints:Checkpoints.restore"),
]
FIRST_STEP = [
    call(SEND),
    call(RECEIVE),
    call(PUBLISH, when="after"),
    call(PUBLISH, 2),
    call(SEND, 2),
    call(RECEIVE, 2),
    call(LOG),
    file("os.rename", "/rollouts/step_000001.jsonl$"),
    call("ray_rl.metrics.sinks:JsonlSink.write"),
    call("ray_rl.metrics.trace:TraceWriter.flush"),
]
SAVE = [
    file("os.mkdir", "/checkpoints/.step_2.writing$"),
    call("ray_rl.checkpoint.slices:write_slices", when="after"),
    file("open", "/.step_2.writing/manifest.json$"),
    file("os.rename", "/checkpoints/step_2$"),
    file("os.rename", "/newest_checkpoint.json$"),
    file("os.rename", "/checkpoints/step_4$"),
]
RESUME = [
    file("os.mkdir", "/aside/[^/]*$"),
    file("os.rename", "/aside/[^/]*/metrics.jsonl$"),
    file("os.rename", "/kills/metrics.jsonl$"),
    file("os.rename", "/aside/[^/]*/rollouts/step_000004.jsonl$"),
    file("os.rename", "/aside/[^/]*/environment.from_step_3.json$"),
    call("ray_rl.checkpoint.slices:SliceReader.read"),
    call(LOG, 2),
]
"""On from step 2, with the records of steps 3 and 4 to move aside; SAVE leaves a run like that."""

BEFORE_RESUME = [Point(f"{which} before the checkpoint of step 4", SAVE[-1].at) for which in ("once", "again")]
"""In place of SAVE where only some points have their turn."""

EXPORT = [
    call("ray_rl.checkpoint.hugging_face:export_models"),
    file("open", "/.export.partial/config.json$"),
    file("os.rename", "/export$"),
    call("ray_rl.cluster.roles:RayActor.export", when="after"),
]
FIRST = [*START, *FIRST_STEP, *SAVE, *BEFORE_RESUME, *RESUME, *EXPORT]
"""From nothing to a run of four steps that has ended."""

EXTEND = [
    file("open", "/config.until_step_4.yaml.partial$"),
    file("os.rename", "/config.until_step_4.yaml$"),
    file("os.rename", "/config.yaml$"),
    file("os.rename", "/environment.from_step_5.json$"),
    file("open", "/trace.from_step_5.json$"),
    file("os.rename", "/rollouts/step_000006.jsonl$"),
    file("shutil.rmtree", "/checkpoints/.step_2.removing$", 2),
    file("os.rename", "/.export.replaced$"),
    file("os.rename", "/export$"),
]
"""From that to six steps. The last two replace its export."""

GO_BACK = [
    file("os.mkdir", "/checkpoints/aside_"),
    file("os.rename", "/aside_[^/]*/step_6$"),
    file("os.rename", "/newest_checkpoint.json$"),
    file("os.rename", "/aside/[^/]*/export$"),
]
"""Back from there to step 4, by `resume --step 4`."""

POINTS = [*START, *FIRST_STEP, *SAVE, *RESUME, *EXPORT, *EXTEND, *GO_BACK]


def chosen() -> list[Point]:
    """All points; with KILLS=<n>, n of them, the next n after every commit."""
    wanted = os.environ.get("KILLS")
    if wanted is None or int(wanted) >= len(POINTS):
        return POINTS
    done = subprocess.run(["git", "rev-list", "--count", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    first = int(done.stdout or 0) * int(wanted)
    turn = [POINTS[(first + place) % len(POINTS)] for place in range(int(wanted))]
    before = BEFORE_RESUME if any(point in RESUME for point in turn) else []
    return [*before, *turn]
