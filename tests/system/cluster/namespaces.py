"""Hosts on this machine: network namespaces with a link of its own between every two, and Ray on each.

A link per pair, and not one bridge: what is done to a link (slower, cut) is done to that pair alone, with any queueing
discipline that the kernel has. Needs root.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path

PREFIX = "rrlpf"
"""Of the names of the namespaces."""
PORT = 6379
OUTSIDE = "8.8.8.8"
COMMAND_S = 30
UP_S = 60

LOOPBACK = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
"""Variables that keep a cluster on one machine."""


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=check)


def why_impossible() -> str:
    """What is missing here; empty where hosts can be made."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "tc", "nsenter", "unshare", "mount") if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2, util-linux)"
    probe = f"{PREFIX}0"
    run("ip", "netns", "del", probe, check=False)
    made = run("ip", "netns", "add", probe, check=False)
    if made.returncode != 0:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    try:
        slow = slowing(probe, "lo")
    finally:
        run("ip", "netns", "del", probe)
    return "" if slow else "this kernel has neither netem nor tbf to slow a link (sch_netem, sch_tbf)"


def slowing(namespace: str, device: str) -> str:
    """Slows a device to 10 Mbit/s, by netem where the kernel has it, else by tbf; says by which, or nothing."""
    options = {"netem": ["rate", "10mbit"], "tbf": ["rate", "10mbit", "burst", "32kbit", "latency", "400ms"]}
    for kind, words in options.items():
        command = ("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", kind, *words)
        if run(*command, check=False).returncode == 0:
            return kind
    return ""


class Hosts:
    """Numbered from 1; closed by `close`."""

    def __init__(self, count: int, folder: Path) -> None:
        self.numbers = range(1, count + 1)
        self._folder = folder
        self._stack = ExitStack()
        self._processes: dict[int, subprocess.Popen] = {}
        # Ray's sockets are in it, and their paths must be short.
        self._temp = Path("/tmp") / PREFIX
        self._clean()
        self._stack.callback(self._clean)
        self._temp.mkdir()
        for number in self.numbers:
            run("ip", "netns", "add", f"{PREFIX}{number}")
            run("ip", "-n", f"{PREFIX}{number}", "link", "set", "lo", "up")
            run("ip", "-n", f"{PREFIX}{number}", "address", "add", f"{self.address(number)}/32", "dev", "lo")
        for a, b in permutations(self.numbers, 2):
            if a < b:
                end = ("peer", "name", f"to{a}", "netns", f"{PREFIX}{b}")
                run("ip", "-n", f"{PREFIX}{a}", "link", "add", f"to{b}", "type", "veth", *end)
        for a, b in permutations(self.numbers, 2):
            run("ip", "-n", f"{PREFIX}{a}", "link", "set", f"to{b}", "up")
            self._route(a, b, self.address(b))
        for number in self.numbers:  # Ray takes the address that would lead there for the node's own; it sends nothing
            self._route(number, number % count + 1, OUTSIDE)

    @staticmethod
    def address(number: int) -> str:
        return f"10.89.0.{number}"

    def start(self, number: int, *, environment: dict[str, str]) -> None:
        """Starts Ray on a host, the head on the first. What is mounted on a host is seen there alone."""
        ray = str(Path(sys.executable).with_name("ray"))
        words = [ray, "start", "--block", "--num-cpus=2", f"--object-store-memory={2**27}", "--disable-usage-stats"]
        words += ["--node-ip-address", self.address(number)]
        if number == 1:
            words += ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self._temp}"]
        else:
            words += [f"--address={self.address(1)}:{PORT}"]
        namespaces = ["nsenter", f"--net=/run/netns/{PREFIX}{number}", "unshare", "--mount", "--pid", "--fork"]
        script = f'mount -t tmpfs none {self._temp} && mount --bind /dev/null /etc/resolv.conf && "$@"; true'
        with (self._folder / f"ray-{number}.log").open("wb") as log:
            # Ray's folder is the host's own: it holds the address of the node. A shell stays process 1 of the host and
            # takes the orphans. Without name servers a question for a name fails at once, and not after seconds.
            self._processes[number] = subprocess.Popen(
                [*namespaces, "--mount-proc", "--kill-child", "bash", "-c", script, "bash", *words],
                env=self._environment() | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def command(self, number: int, *words: str, timeout_s: float) -> subprocess.CompletedProcess:
        """Runs a command on a host."""
        enter = ["nsenter", f"--target={self._inside(number)}", "--net", "--mount", "--pid", f"--wdns={os.getcwd()}"]
        return subprocess.run(
            [*enter, *words], capture_output=True, text=True, timeout=timeout_s, check=False, env=self._environment()
        )

    def mount(self, number: int, *words: str) -> None:
        """Mounts something that this host alone sees."""
        done = self.command(number, "mount", *words, timeout_s=COMMAND_S)
        assert done.returncode == 0, done.stderr

    def slow(self, a: int, b: int) -> str:
        """Slows what `a` sends to `b`; by what."""
        kind = slowing(f"{PREFIX}{a}", f"to{b}")
        assert kind, "neither netem nor tbf"
        return kind

    def cut(self, a: int, b: int) -> None:
        """What `a` sends to `b` is lost without a word."""
        neighbour = ("neighbour", "replace", self.address(b), "lladdr", "02:00:00:00:00:99", "dev", f"to{b}")
        run("ip", "-n", f"{PREFIX}{a}", *neighbour, "nud", "permanent")

    def heal(self, a: int, b: int) -> None:
        """Ends `slow`."""
        run("tc", "-n", f"{PREFIX}{a}", "qdisc", "del", "dev", f"to{b}", "root")

    def close(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGKILL)  # all of the host goes with it: --kill-child
            process.wait(timeout=COMMAND_S)
        self._stack.close()

    def logs(self) -> str:
        return "\n".join(file.read_text(errors="replace")[-2000:] for file in sorted(self._folder.glob("ray-*.log")))

    def _inside(self, number: int) -> str:
        """Process 1 of a host, by its number outside."""
        process = self._processes[number]
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline_s = time.monotonic() + COMMAND_S
        while not (found := children.read_text().split()):
            assert process.poll() is None and time.monotonic() < deadline_s, f"host {number} ended: {self.logs()}"
            time.sleep(0.05)
        return found[0]

    def _route(self, a: int, b: int, to: str) -> None:
        run("ip", "-n", f"{PREFIX}{a}", "route", "add", to, "dev", f"to{b}", "src", self.address(a))

    def _environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in LOOPBACK}

    def _clean(self) -> None:
        for number in self.numbers:
            run("ip", "netns", "del", f"{PREFIX}{number}", check=False)
        deadline_s = time.monotonic() + COMMAND_S
        while self._temp.exists() and time.monotonic() < deadline_s:
            shutil.rmtree(self._temp, ignore_errors=True)
