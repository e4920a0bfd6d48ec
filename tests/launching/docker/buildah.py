"""Images without a registry: a Debian root by debootstrap as base, and buildah to run a Dockerfile on it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MIRROR = "http://deb.debian.org/debian"
RELEASE = "bookworm"
BASE = "localhost/base"
DISK_BYTES = 20 * 2**30
"""Three times the image: its container, the packed layer, the layer."""
CERTIFICATES = "/etc/machine-certificates.crt"
"""Where the base image has those of this machine."""


def missing() -> str | None:
    """Why no image can be built here."""
    tools = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    if tools:
        return f"{' and '.join(tools)} not installed: tests/launching/docker/install.sh"
    if os.geteuid() != 0:
        return "needs root: debootstrap and chroot"
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return None if free > DISK_BYTES else f"{free / 2**30:.0f} GiB free in {tempfile.gettempdir()}; needs 20"


class Buildah:
    """Images and containers below one folder, which nothing else sees."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "tmp").mkdir()
        self._driver = "overlay" if self._can_overlay() else "vfs"

    def __call__(self, *words: str, timeout_s: float = 120) -> str:
        """What the command prints.

        Raises:
            CalledProcessError: it failed.
        """
        return self.tried(*words, timeout_s=timeout_s, check=True).stdout

    def tried(self, *words: str, timeout_s: float = 120, check: bool = False) -> subprocess.CompletedProcess[str]:
        """The command, ended."""
        store = ["--root", str(self._folder / "root"), "--runroot", str(self._folder / "run")]
        done = subprocess.run(
            ["buildah", *store, "--storage-driver", self._driver, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            # Layers are packed in a temporary folder: gigabytes.
            env=os.environ | {"TMPDIR": str(self._folder / "tmp")},
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            sys.stderr.write(done.stdout[-4000:] + done.stderr[-8000:])
            done.check_returncode()
        return done

    def bootstrap(self) -> None:
        """Makes the image BASE: a minimal Debian that finds packages as this machine does."""
        root = self._folder / "debian"
        words = ["debootstrap", "--variant=minbase", RELEASE, str(root), MIRROR]
        subprocess.run(words, check=True, capture_output=True, timeout=300)
        (root / "etc/pip.conf").write_text("[global]\n" + "".join(f"{key} = {pip()[key]}\n" for key in pip()))
        if certificates := os.environ.get("PIP_CERT"):
            shutil.copy(certificates, root / CERTIFICATES[1:])
        for file in Path("/etc/apt/apt.conf.d").iterdir():
            if "Acquire::" in file.read_text():
                shutil.copy(file, root / "etc/apt/apt.conf.d" / file.name)
        container = self("from", "scratch").strip()
        self("add", "--quiet", container, str(root), "/")
        if certificates:
            self("config", "--env", f"PIP_CERT={CERTIFICATES}", container)
        self("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(root)

    def build(self, image: str, *, file: Path, context: Path, timeout_s: float) -> None:
        """Runs the steps of a Dockerfile on BASE."""
        folders = [
            f"--volume={folder}:{folder}:ro" for folder in pip().get("find-links", "").split() if is_here(folder)
        ]
        words = ["--isolation", "chroot", "--build-arg", f"BASE_IMAGE={BASE}", *folders, "--tag", image]
        self("bud", *words, "--file", str(file), str(context), timeout_s=timeout_s)

    def configuration(self, image: str) -> dict[str, Any]:
        """What the image says of how to run it: User, WorkingDir, Env, Entrypoint, Cmd."""
        configuration: dict[str, Any] = json.loads(self("inspect", "--type", "image", image))["OCIv1"]["config"]
        return configuration

    def close(self) -> None:
        """Removes everything."""
        self.tried("umount", "--all")
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((mount for mount in mounts if mount.startswith(f"{self._folder}/")), reverse=True):
            subprocess.run(["umount", mount], check=True, timeout=60)
        shutil.rmtree(self._folder)

    def _can_overlay(self) -> bool:
        """Not where the folder is itself on an overlay, as inside a container: vfs copies instead."""
        layers = [self._folder / name for name in ("lower", "upper", "work", "merged")]
        for layer in layers:
            layer.mkdir()
        lower, upper, work, merged = map(str, layers)
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        words = ["mount", "-t", "overlay", "overlay", "-o", options, merged]
        done = subprocess.run(words, check=False, capture_output=True, timeout=30)
        if done.returncode == 0:
            subprocess.run(["umount", merged], check=True, timeout=30)
        return done.returncode == 0


def pip() -> dict[str, str]:
    """How pip of this machine finds packages, but for indexes and certificates that are files of it."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    settings = dict(re.findall(r"^[\w:]+\.(index-url|extra-index-url|find-links)='(.*)'$", listed, re.MULTILINE))
    return {key: value for key, value in settings.items() if "file://" not in value}


def is_here(place: str) -> bool:
    """Whether a place of `find-links` is a folder, not an address."""
    return not urlsplit(place).scheme and Path(place).is_dir()
