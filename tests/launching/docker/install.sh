#!/usr/bin/env bash
# Installs what tests/launching/docker needs, on Debian and Ubuntu, as root: buildah and debootstrap. At once when they are there.
set -euo pipefail

if command -v buildah >/dev/null && command -v debootstrap >/dev/null; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests/docker: buildah and debootstrap are not there, and only root can install them, with apt-get" >&2
    exit 1
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah debootstrap >/dev/null
