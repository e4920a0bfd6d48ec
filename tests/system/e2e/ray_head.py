"""The head of a Ray cluster on loopback, with a token, whose processes can be told from all others."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
START_S = 90.0
END_S = 20.0
CPUS = 4


@dataclass(frozen=True)
class Head:
    """A head that runs."""

    address: str
    """Of the dashboard."""
    token_path: Path

    @property
    def environment(self) -> dict[str, str]:
        """Of a user of the cluster."""
        return {
            **clean_environment(),
            "RAY_API_SERVER_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
        }


def clean_environment() -> dict[str, str]:
    """This process's, without settings of Ray, with our commands and with this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    return kept | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def write_token(path: Path) -> Path:
    """A fresh token, for its owner only."""
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


@contextmanager
def ray_head(folder: Path) -> Iterator[Head]:
    """A head until the block ends.

    Args:
        folder: for the token and the head's output.
    """
    # Sockets below it have at most 107 characters in their paths.
    temporary = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))
    token_path = write_token(folder / "token")
    gcs, dashboard, agent = _free_ports(3)
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={temporary}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--num-cpus={CPUS}", "--num-gpus=0"]
    command += [f"--object-store-memory={2**27}", "--disable-usage-stats"]
    head = Head(f"http://127.0.0.1:{dashboard}", token_path)
    environment = {name: value for name, value in head.environment.items() if name != "RAY_API_SERVER_ADDRESS"}
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_for(dashboard, process, folder / "head.log")
        yield head
    finally:
        _end(process, temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    give_up_s = time.monotonic() + START_S
    while time.monotonic() < give_up_s:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError(f"the head is not up within {START_S:g} s: {log.read_text()}")


def processes_with(word: str) -> list[int]:
    """Ids of the processes whose command line has a word in it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def _end(process: subprocess.Popen, temporary: Path) -> None:
    """Asks the head to end, and kills what is left of it: all its processes name its folder."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=END_S)
    for pid in {process.pid, *processes_with(f"{temporary}/")}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=END_S)
