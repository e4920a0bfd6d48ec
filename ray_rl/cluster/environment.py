"""Sets the environment of a process before it imports heavy libraries: Ray's core reads its variables only once."""

from __future__ import annotations

import ctypes
import os
import secrets
import stat
import sys
from pathlib import Path

from ray_rl.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters in glibc's malloc.h."""
MALLOPT_MAX = 2**31 - 1


def prepare_environment(*, local: bool) -> None:
    """Sets Ray's variables before anything imports Ray; the user's own settings stay.

    Args:
        local: whether this process starts a cluster. It then listens on loopback only, and has a fresh token, which
            only this process and the workers know.
    """
    # With Ray's default of 15, any other process on a small machine starves the workers.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray uses colours even in files.
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    if not local:
        return
    # Every worker is started for what it does, with variables of its own: those started in advance would stay idle.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Despite its name: with 0, a cluster of one machine listens on loopback only.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if sys.platform == "linux":
        # Otherwise torch's groups and vLLM use the address of the host name.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def quiet_libraries(*, on_cpu: bool) -> None:
    """Disables progress bars and advice of libraries, before anything imports them; the user's own settings stay.

    A progress bar fills a log with copies of itself; our own messages say what takes long.

    Args:
        on_cpu: whether the run is on CPU, where DeepSpeed warns that it found no other accelerator.
    """
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def use_token(path: str | None) -> None:
    """Sets the token for a cluster, before anything imports Ray.

    Args:
        path: the file with the token; None uses RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, if one of them is set.

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
            raise UserError(
                f"launch.ray_job.token_path={path}: others can read it (mode {mode:o}); run chmod 600 {file}"
            )
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
        os.environ["RAY_AUTH_MODE"] = "token"
    elif os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def keep_freed_memory() -> None:
    """Makes glibc's malloc reuse large blocks. By default it returns each to the kernel, which zeroes its pages again.

    Page faults took a tenth of the processor time of an update, and up to three quarters under other load. The
    variables do the same in child processes such as vLLM's, which allocates every layer again in a publish.
    """
    if sys.platform == "linux":
        os.environ.update(MALLOC_MMAP_THRESHOLD_=str(MALLOPT_MAX), MALLOC_TRIM_THRESHOLD_=str(MALLOPT_MAX))
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MALLOPT_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, MALLOPT_MAX)
