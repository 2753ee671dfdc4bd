"""The root of a bare host of Debian, ready for systemd: what a Machine gets a copy of."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PREPARE = r"""
mkdir -p "$UPPER" "$WORK/work" "$WORK/root"
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$UPPER,workdir=$WORK/work" "$WORK/root"
cd "$WORK/root"
mount -t proc proc proc
mount --rbind /dev dev
cp -L /etc/resolv.conf etc
export DEBIAN_FRONTEND=noninteractive
chroot . apt-get update -qq
chroot . apt-get install -qq --yes --no-install-recommends systemd iproute2
# Downloaded only, since the hosts have no network.
chroot . apt-get install -qq --yes --download-only "$@"
"""
"""A host of today: Debian's minimum, systemd and `ip`."""


def prepared(suite: str, directory: Path, *packages: str) -> str:
    """Return the root of a bare host, with packages for apt to install without a network.

    Needs root and debootstrap, and for its first run a mirror.
    """
    made = [ROOT / "scripts" / "bare-system", "--suite", suite, "true"]
    subprocess.run(made, check=True, timeout=900, capture_output=True)
    base = os.environ.get("LINKD_BARE", "/var/tmp/linkd-bare") + f"/{suite}"
    upper = directory / "upper"
    where = {"BASE": base, "UPPER": str(upper), "WORK": str(directory)}
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _PREPARE, "sh", *packages],
        env={**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **where},
        check=True,
        timeout=600,
        capture_output=True,
    )
    return f"{upper}:{base}"
