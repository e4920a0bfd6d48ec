"""Pods without Kubernetes: network, process and mount namespaces of this machine, whose packages are the "image"."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
BRIDGE, GATEWAY, NETWORK = "rlkube0", "10.78.0.1", "10.78.0"
COMMANDS = ("ip", "nsenter", "unshare", "setpriv", "mount")
BIN = Path(sys.executable).parent


def missing_for_pods() -> str | None:
    """Why no pods can be made here; None where they can."""
    if os.geteuid() != 0:
        return "needs root, to make network and mount namespaces"
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2, util-linux, mount)"
    probe = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--net", "true"], capture_output=True, timeout=30)
    return None if probe.returncode == 0 else f"namespaces are not allowed here: {probe.stderr.decode().strip()}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@contextmanager
def network() -> Iterator[None]:
    """A bridge that pods hang on; we are GATEWAY."""
    with suppress(subprocess.CalledProcessError):
        ip("link", "del", BRIDGE)
    ip("link", "add", BRIDGE, "type", "bridge")
    try:
        ip("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        yield
    finally:
        ip("link", "del", BRIDGE)


@dataclass
class Container:
    """A process in namespaces of its own, and what it prints."""

    process: subprocess.Popen
    log: Path

    @property
    def init(self) -> int | None:
        """Of its first process, as we see it; None once it is gone."""
        with suppress(OSError, IndexError):
            unshare = self.process.pid
            return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])
        return None

    def kill(self) -> None:
        """Ends all of its processes: those of a process namespace die with its first."""
        if self.init is not None:
            with suppress(ProcessLookupError):
                os.kill(self.init, signal.SIGKILL)
        self.process.kill()
        self.process.wait(timeout=30)


@dataclass
class Pod:
    """A network namespace with an address, and containers of one pod template in it."""

    name: str
    number: int
    template: dict
    volumes: dict[str, Path]
    """Folders of claims and ConfigMaps, by the name of the volume."""
    place: Path
    environment: dict[str, str]
    """What the operator adds to every container."""
    hosts: dict[str, str]
    containers: dict[str, Container] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def spec(self) -> dict:
        return self.template["spec"]

    def connect(self) -> None:
        """The namespace, with a route to everywhere, by which programs find their own address."""
        ip("netns", "add", self.name)
        ip("link", "add", f"rlk{self.number}", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", f"rlk{self.number}", "master", BRIDGE, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")
        ip("-n", self.name, "route", "add", "default", "via", GATEWAY)

    def start(self, name: str, command: str, *, mounts: list[dict], environment: dict[str, str], workdir: str) -> None:
        """Starts a container: the command is a line for bash, its first process."""
        log = self.place / f"{self.name}-{name}.log"
        whole = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": os.environ.get("HOME", "/root"),
            "PYTHONPATH": str(ROOT),
            **self.environment,
            **environment,
        }
        script = "\n".join([*self._mounts(mounts), f"cd {shlex.quote(workdir)}", _exec(whole, command)])
        # Killed with the thread that started it, however the tests end.
        words = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/run/netns/{self.name}"]
        words += ["unshare", "--uts", "--mount", "--pid", "--fork"]
        words += ["--mount-proc", "--kill-child", "bash", "-ec", script]
        with log.open("wb") as file:
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        self.containers[name] = Container(process, log)

    def _mounts(self, mounts: list[dict]) -> Iterator[str]:
        """Lines for bash that make the container's view of the disk; nothing of it is seen outside."""
        yield "mount --make-rprivate /"
        yield "mount -t tmpfs tmpfs /run"
        yield f"hostname {self.name}"
        session = self.place / "tmp" / self.name
        session.mkdir(parents=True, exist_ok=True)
        hosts = self.place / f"{self.name}.hosts"
        known = {"localhost": "127.0.0.1", self.name: self.address, **self.hosts}
        hosts.write_text("".join(f"{at} {name}\n" for name, at in known.items()))
        yield f"mount --bind {hosts} /etc/hosts"
        names = self.place / "resolv.conf"
        names.write_text("nameserver 127.0.0.1\n")  # where nobody listens: an unknown name fails at once
        yield f"mount --bind {names} /etc/resolv.conf"
        yield f"mkdir -p /tmp/ray && mount --bind {session} /tmp/ray"
        kinds = {volume["name"]: volume for volume in self.spec["volumes"]}
        for mount in mounts:
            target, volume = mount["mountPath"], kinds.get(mount["name"], {})
            if "emptyDir" in volume:
                yield f"mount -t tmpfs -o size={volume['emptyDir']['sizeLimit'].removesuffix('i')} tmpfs {target}"
                continue
            source = self.volumes[mount["name"]] / mount.get("subPath", "")
            make = f"mkdir -p $(dirname {target}) && touch {target}" if source.is_file() else f"mkdir -p {target}"
            yield f"{make} && mount --bind {source} {target}"

    def run_inside(self, name: str, words: list[str], *, limit_s: float) -> None:
        """`kubectl exec`: a command beside the first process of a container, in its view of the world."""
        container = self.containers[name]
        if container.init is None:
            return
        inside = Path(f"/proc/{container.init}")
        environment = dict(line.split("=", 1) for line in (inside / "environ").read_text().split("\0") if line)
        command = ["nsenter", f"--target={container.init}", "--net", "--mount", "--pid", "--uts", "--wd", *words]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=environment, timeout=limit_s, check=False, capture_output=True)

    def delete(self) -> None:
        """As the kubelet: preStop, SIGTERM to the first process of each container, and SIGKILL after the grace."""
        limit_s = time.monotonic() + self.spec["terminationGracePeriodSeconds"]
        for container in self.spec["containers"]:
            hook = container.get("lifecycle", {}).get("preStop")
            if hook and container["name"] in self.containers:
                left_s = max(0.1, limit_s - time.monotonic())
                self.run_inside(container["name"], hook["exec"]["command"], limit_s=left_s)
        for container in self.containers.values():
            if container.init is not None:
                with suppress(ProcessLookupError):
                    os.kill(container.init, signal.SIGTERM)
        for container in self.containers.values():
            with suppress(subprocess.TimeoutExpired):
                container.process.wait(timeout=max(0.1, limit_s - time.monotonic()))
        self.destroy()

    def destroy(self) -> None:
        """Everything, at once."""
        for container in self.containers.values():
            container.kill()
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.name)


def _exec(environment: dict[str, str], command: str) -> str:
    pairs = " ".join(shlex.quote(f"{key}={value}") for key, value in environment.items())
    return f"exec env -i {pairs} /bin/bash -c -- {shlex.quote(command)}"
