"""Slurm on three virtual hosts of this machine: each a network, process and mount namespace with its own slurmd.

The recipe is ../shared/slurm. Names of namespaces and of the bridge are fixed, so that one cluster can be there at a
time; one that an interrupted run left behind is ended first, found by those names.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.test_architecture import ROOT

SHARED = ROOT.parent / "shared" / "slurm"
HOSTS = ("node1", "node2", "node3")
BRIDGE = "eco-br"
PREFIX = "ray-rl-slurm-"
"""Of the folder of a cluster."""
LOCK = Path("/run/ray-rl-slurm.lock")
"""Held while a cluster is there; holds the folder of the last one."""
PROGRAMS = ("slurmd", "slurmctld", "sbatch", "munged", "runuser", "ip", "nsenter", "unshare", "gcc")
UP_S, COMMAND_S, LOCK_S = 40.0, 30.0, 300.0


def why_not() -> str | None:
    """Why there can be no such cluster here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        return f"{', '.join(missing)} not installed: tests/launching/slurm/install.sh"
    if not SHARED.is_dir():
        return f"{SHARED} is not there"
    probe = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, timeout=COMMAND_S, check=False)
    return None if probe.returncode == 0 else f"namespaces cannot be made: {probe.stderr.decode().strip()}"


@dataclass
class VirtualCluster:
    """The cluster: hosts can be killed and brought back."""

    root: Path
    hosts: dict[str, subprocess.Popen] = field(default_factory=dict)
    controller: subprocess.Popen | None = None

    @property
    def conf(self) -> Path:
        return self.root / "slurm-netns.conf"

    def command(self, *words: str) -> str:
        """What a command of Slurm's says."""
        environment = os.environ | {"SLURM_CONF": str(self.conf)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def start_host(self, name: str) -> None:
        entry = ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            self.hosts[name] = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{name}", *entry, str(self.root / "node-entry.sh"), name],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_host(self, name: str) -> None:
        """As when its power fails, but that its connections are closed."""
        process = self.hosts.pop(name)
        process.kill()
        process.wait(COMMAND_S)

    def processes(self, name: str) -> list[str]:
        """Command lines of what runs on a host."""
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, timeout=COMMAND_S, check=True)
        lines = []
        for pid in found.stdout.decode().split():
            with suppress(OSError):
                lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return lines

    def await_idle(self) -> None:
        """Until every host takes jobs."""
        wait_for(lambda: self._idle() == len(HOSTS), UP_S, "hosts to be idle", self._sinfo)

    def _sinfo(self) -> str:
        return self.command("sinfo", "--noheader", "-N", "-p", "debug", "-o", "%N %T")

    def _idle(self) -> int:
        return sum(line.split()[1] == "idle" for line in self._sinfo().splitlines())


def step_daemons(job: str) -> list[str]:
    """Titles of the processes with which the hosts look after the steps of a job."""
    titles = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    return [title for title in titles if title.startswith(f"slurmstepd: [{job}.")]


def wait_for(condition: Callable[[], bool], limit_s: float, what: str, show: Callable[[], str] = str) -> None:
    """Returns when the condition holds.

    Raises:
        AssertionError: not in time.
    """
    give_up_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up_s, f"waited {limit_s:g} s for {what}: {show()}"
        time.sleep(0.3)


@contextmanager
def virtual_cluster(root: Path) -> Iterator[VirtualCluster]:
    """A cluster whose hosts take jobs; it is gone with the block.

    Args:
        root: an empty folder for its files, which all hosts see.
    """
    with _alone() as lock:
        before = Path(lock.read())
        _end_leftovers(before)
        if before.name.startswith(PREFIX):
            shutil.rmtree(before, ignore_errors=True)
        lock.seek(0)
        lock.truncate()
        lock.write(str(root))
        lock.flush()
        cluster = VirtualCluster(root)
        munged = _start_munge()
        try:
            _write_files(root)
            _ran(str(root / "netns-up.sh"), str(len(HOSTS)))
            with (root / "log" / "slurmctld.out").open("ab") as log:
                controller = ["slurmctld", "-D", "-c", "-f", str(cluster.conf)]
                cluster.controller = subprocess.Popen(controller, stdout=log, stderr=log, start_new_session=True)
            for name in HOSTS:
                cluster.start_host(name)
            wait_for(lambda: (root / "slurmctld.pid").is_file(), UP_S, "slurmctld")
            cluster.await_idle()
            yield cluster
        finally:
            for process in (*cluster.hosts.values(), cluster.controller, munged):
                if process is not None:
                    # With the daemons that it has started itself.
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(COMMAND_S)
            _end_leftovers(root)


@contextmanager
def _alone():
    with LOCK.open("a+") as lock:
        give_up_s = time.monotonic() + LOCK_S
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            assert time.monotonic() < give_up_s, f"another virtual cluster holds {LOCK}"
            time.sleep(1)
        lock.seek(0)
        yield lock


def _end_leftovers(root: Path) -> None:
    """What lives in our namespaces, the controller of a cluster's folder, then the namespaces and the bridge."""
    for name in HOSTS:
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, timeout=COMMAND_S, check=False)
        _kill(*map(int, found.stdout.split()))
    with suppress(OSError, ValueError):
        pid = int((root / "slurmctld.pid").read_text())
        if str(root) in Path(f"/proc/{pid}/cmdline").read_text():
            _kill(pid)
    for index, name in enumerate(HOSTS, 1):
        _tried("ip", "netns", "del", name)
        _tried("ip", "link", "del", f"ve{index}")
        shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
    _tried("ip", "link", "del", BRIDGE)


def _kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _start_munge() -> subprocess.Popen | None:
    """The daemon that Slurm trusts; None where it runs already."""
    if _tried("munge", "-n").returncode == 0:
        return None
    run = Path("/run/munge")
    run.mkdir(exist_ok=True)
    shutil.chown(run, "munge", "munge")
    command = ["runuser", "-u", "munge", "--", "/usr/sbin/munged", "--foreground", "--force"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: _tried("munge", "-n").returncode == 0, UP_S, "munged")
    return process


def _write_files(root: Path) -> None:
    for folder in ("state", "spool", "log", "dev", *(f"nodefs/{name}/ray" for name in HOSTS)):
        (root / folder).mkdir(parents=True)
    for index in range(8):
        (root / "dev" / f"nvidia{index}").touch()
    for source in SHARED.iterdir():
        if source.suffix == ".sbatch":
            continue
        text = source.read_text().replace("@ROOT@", str(root))
        (root / source.name).write_text(text)
        (root / source.name).chmod(0o755 if source.suffix == ".sh" else 0o644)
    conf = root / "slurm-netns.conf"
    plugstack = root / "plugstack.conf"
    here = socket.gethostname().split(".")[0]
    conf.write_text(
        conf.read_text().replace("SlurmctldHost=vm(", f"SlurmctldHost={here}(")
        + f"PlugStackConfig={plugstack}\n"
        # Heterogeneous jobs wait for the backfill scheduler, by default for half a minute.
        + "SchedulerParameters=bf_interval=1\n"
    )
    up = root / "netns-up.sh"
    up.write_text(up.read_text().replace("10.77.0.1 vm", f"10.77.0.1 {here}"))
    plugin = root / "fake_pyxis.so"
    _ran("gcc", "-shared", "-fPIC", "-o", str(plugin), str(root / "fake_pyxis.c"))
    plugstack.write_text(f"required {plugin}\n")


def _ran(*command: str) -> None:
    done = _tried(*command)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _tried(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
