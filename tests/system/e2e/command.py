"""`ray-rl` in a session of its own, whose processes can be told from all others."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.algorithm import algorithm as algorithm_section
from tests.tiny_model import write_tiny_model

PROMPTS, GROUP = 4, 4
LIMIT_S = 400
OF_THE_CLOCK = ("time/", "throughput/", "sync/gb_per_s", "sync/turn_s")
"""First words of the metrics that differ between two runs that are equal bit for bit."""
GONE_WITHIN_S = 30.0


@dataclass(frozen=True)
class Ended:
    """A run that ended."""

    command: list[str]
    place: Path
    folder: Path
    code: int
    stdout: str
    stderr: str
    left_behind: list[str]
    pid: int = 0

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def rollouts(self, step: int) -> list[dict]:
        file = self.folder / "rollouts" / f"step_{step:06d}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]


def without_the_clock(records: list[dict], but_for: tuple[str, ...] = ()) -> list[dict]:
    """Records without what is measured in time, and without metrics that begin with `but_for`."""
    left_out = OF_THE_CLOCK + but_for
    return [{key: value for key, value in record.items() if not key.startswith(left_out)} for record in records]


def processes_of(session: int) -> list[str]:
    """Process id and command line of the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            line = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(f"{stat.parent.name} {line}")
    return found


def kill_all(session: int) -> None:
    """SIGKILL for every process of a session, the command first."""
    for pid in (session, *(int(process.split()[0]) for process in processes_of(session))):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def run(
    place: Path,
    *arguments: str,
    then: Callable[[subprocess.Popen], None] = lambda process: None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """The command to its end.

    Args:
        place: the folder to run in, with its `run.yaml`.
        arguments: of the command: `train run.yaml ...` if the first is a key=value, or there is none.
        then: called once the command is started.
        environment: variables beside this process's.
    """
    if not arguments or "=" in arguments[0]:
        arguments = ("train", "run.yaml", *arguments)
    command = [str(Path(sys.executable).with_name("ray-rl")), *arguments]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    variables = own | dict(environment or {})
    process = subprocess.Popen(
        command, cwd=place, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    folder = place / "runs" / yaml.safe_load((place / "run.yaml").read_text())["run"]["name"]
    try:
        then(process)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    except BaseException:
        kill_all(process.pid)
        raise
    give_up_s = time.monotonic() + GONE_WITHIN_S
    while (left := processes_of(process.pid)) and time.monotonic() < give_up_s:
        time.sleep(0.2)
    return Ended(command, place, folder, process.returncode, stdout.decode(), stderr.decode(), left, process.pid)


def require_trained(ended: Ended, steps: int) -> None:
    """The run succeeded, and every step changed the weights and published them."""
    assert ended.code == 0, ended.stderr + ended.stdout
    assert [record["version"] for record in ended.metrics] == list(range(1, steps + 1))
    for record in ended.metrics:
        assert record["policy/grad_norm"] > 0
        assert record["sync/bytes"] > 0


def wait_until(process: subprocess.Popen, condition: Callable[[], object], *, poll_s: float = 0.1) -> None:
    """Returns when the condition holds.

    Raises:
        AssertionError: the command ended before, or it took too long.
    """
    give_up_s = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before"
        assert time.monotonic() < give_up_s, "not in time"
        time.sleep(poll_s)


def steps_done(folder: Path) -> int:
    """Lines in `metrics.jsonl`."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def place_for(folder: Path, name: str, *, steps: int, algorithm: dict | None = None, **sections: dict | list) -> Path:
    """A folder with a tiny model and a `run.yaml` for it; sections are merged over those here, lists replace them."""
    write_tiny_model(folder / "model")
    config = {
        "run": {"name": name, "steps": steps},
        "model": {"path": "./model", "dtype": "float32"},
        "data": {"kind": "addition", "maximum": 4, "max_prompt_tokens": 32},
        "rewards": [{"kind": "number", "require_stop": False}],
        "algorithm": algorithm_section(**{"prompts_per_step": PROMPTS, "group_size": GROUP, **(algorithm or {})}),
        "rollout": {"max_tokens": 16, "max_sequences": 16, "kv_cache_gib": 0.05},
        "train": {"learning_rate": 1e-3},
        "cluster": {"accelerator": "cpu"},
    }
    for section, values in sections.items():
        config[section] = values if isinstance(values, list) else config.get(section, {}) | values
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder
