"""What a process is told before it imports anything heavy: Ray's core reads its variables once. Imports none of it."""

from __future__ import annotations

import ctypes
import os
import secrets
import stat
import sys
from pathlib import Path

from ray_rl.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
MALLOPT_MAX = 2**31 - 1


def prepare_environment(*, local: bool) -> None:
    """Sets what Ray should find, before anything imports it; the user's own settings stay.

    Args:
        local: a cluster is started here: it listens on loopback only, and gets token authentication with a fresh token,
            which only this process and the workers know.
    """
    # Ray's default is 15, at which workers starve beside any other process on a small machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray colours what it prints, also into files.
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if not local:
        return
    # Named for the systems where it is the default: a cluster of one machine listens on loopback only.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if sys.platform == "linux":
        # torch's groups and vLLM take the address of the host's name otherwise.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def quiet_libraries(*, on_cpu: bool) -> None:
    """Stops progress bars and advice of libraries, before anything imports them; the user's own settings stay.

    A bar that is redrawn fills a log with copies of itself; what takes long is said by our own heartbeat.

    Args:
        on_cpu: whether the run is on CPU, where DeepSpeed warns that it found no other accelerator.
    """
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def use_token(path: str | None) -> None:
    """Sets which token is shown to a cluster, before anything imports Ray.

    Args:
        path: of its file; None leaves it to RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, if one of them is set.

    Raises:
        UserError: the file cannot be read, or others can read it.
    """
    if path is not None:
        file = Path(path).expanduser()
        try:
            with file.open("rb") as opened:
                mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
        except OSError as error:
            raise UserError(
                f"launch.ray_job.token_path={path}: cannot be read ({error.strerror}); set it to the file with the "
                "token that the cluster was started with"
            ) from None
        if mode & 0o077:
            raise UserError(f"launch.ray_job.token_path={path}: others may use it (mode {mode:o}); chmod 600 {file}")
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
        os.environ["RAY_AUTH_MODE"] = "token"
    elif os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def keep_freed_memory() -> None:
    """Makes glibc's malloc reuse large blocks: by default each goes back to the kernel, which zeroes it for the next.

    Page faults were a tenth of the processor time of an update, and up to three quarters beside other load. The
    variables say the same to processes that this one starts: vLLM's, which makes every layer anew in a publish.
    """
    if sys.platform == "linux":
        os.environ.update(MALLOC_MMAP_THRESHOLD_=str(MALLOPT_MAX), MALLOC_TRIM_THRESHOLD_=str(MALLOPT_MAX))
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MALLOPT_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, MALLOPT_MAX)
