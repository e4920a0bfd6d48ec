"""A scripted Slurm: the commands that an sbatch script calls, as small programs that do what a test says.

`srun` knows the steps by their names. The driver's step runs the script's own functions, down to a `ray-rl` that ends
as it is told to.
"""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.system.e2e.command import processes_of

LIMIT_S = 30.0

PROGRAMS = {
    "srun": r"""
echo "$*" >>"$SCRIPT/srun.calls"
ready=
for word in "$@"; do
    case $word in
        --job-name=*) step=${word#*=} ;;
        */ready) ready=$word ;;
    esac
done
while [[ $1 == -* ]]; do shift; done
behaviour=$SCRIPT/$step
[ ! -e "$behaviour" ] || . "$behaviour"
case $step in
    ray-head) exec python3 -c "
import os, socket, time
server = socket.create_server((\"127.0.0.1\", int(os.environ[\"RAY_RL_PORT\"])))
time.sleep(60)" ;;
    roll-call) touch "$ready"; exec /bin/sleep 60 ;;
    ray-workers) exec /bin/sleep 60 ;;
    driver) exec "$@" ;;
esac
""",
    "scontrol": 'echo "$*" >>"$SCRIPT/scontrol.calls"\n',
    "ray-rl": 'echo "$*" >>"$SCRIPT/ray-rl.calls"\n. "$SCRIPT/$1"\n',
    # Waits are for a scheduler, and there is none.
    "sleep": "exec /bin/sleep 0.05\n",
    # Of a host that Slurm knows by no other address than its own.
    "getent": "exit 2\n",
    "hostname": "echo 127.0.0.1\n",
}

UNTIL_USR1 = (
    'trap \'exit {code}\' USR1\ntouch "$SCRIPT/listens"\nwhile [ -d "$SCRIPT" ]; do /bin/sleep 0.05 & wait $!; done\n'
)
"""A driver that trains until it is told to end, and has saved then."""


@dataclass
class Attempted:
    """An attempt that ended."""

    code: int
    log: str
    outcome: str
    requeued: bool
    left_behind: list[str]
    """Processes of the attempt that are still there."""


@dataclass
class Scheduler:
    """Runs a script as Slurm would: attempt after attempt in one folder."""

    place: Path
    text: str
    attempt: int = 0
    number: int = 7

    @property
    def folder(self) -> Path:
        """Of the current attempt."""
        return self.place / "slurm-logs" / f"run-{self.number}" / f"attempt-{self.attempt}"

    def calls(self, program: str) -> list[str]:
        """Arguments of every call so far."""
        file = self.place / "script" / f"{program}.calls"
        return file.read_text().splitlines() if file.is_file() else []

    def run(self, *, then: Callable[[subprocess.Popen], None] = lambda process: None, **steps: str) -> Attempted:
        """One attempt.

        Args:
            then: called once the script runs.
            steps: bash of a step (ray_head, ray_workers, roll_call) or a command of ray-rl (train, doctor).
        """
        script, programs = self.place / "script", self.place / "bin"
        for folder in (script, programs):
            folder.mkdir(exist_ok=True)
        for name, body in PROGRAMS.items():
            (programs / name).write_text(f"#!/bin/bash\n{body}")
            (programs / name).chmod(0o755)
        for name, body in steps.items():
            (script / name.replace("_", "-")).write_text(body)
        (script / "listens").unlink(missing_ok=True)
        before = len(self.calls("scontrol"))
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SCRIPT": str(script),
            "SLURM_JOB_NAME": "run",
            "SLURM_JOB_ID": str(self.number),
            "SLURMD_NODENAME": "node1",
            "SLURM_RESTART_COUNT": str(self.attempt),
        }
        process = subprocess.Popen(
            ["bash", "-c", self.text],
            cwd=self.place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            then(process)
            log, _ = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
        outcome = self.folder / "outcome"
        ended = Attempted(
            code=process.returncode,
            log=log,
            outcome=outcome.read_text().strip() if outcome.is_file() else "",
            left_behind=processes_of(process.pid),
            requeued=self.calls("scontrol")[before:] == [f"requeue {self.number}"],
        )
        self.attempt += 1
        return ended

    def wait_for_driver(self, process: subprocess.Popen) -> None:
        """Until the driver listens to signals."""
        self.wait(process, lambda: (self.place / "script" / "listens").exists())

    @staticmethod
    def wait(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + LIMIT_S
        while not condition():
            assert process.poll() is None, f"ended before, with {process.returncode}"
            assert time.monotonic() < give_up_s, "not in time"
            time.sleep(0.02)
