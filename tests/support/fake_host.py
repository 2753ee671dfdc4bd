"""A host for scripts/install whose systemd, Python and linkd are short shell scripts.

It is a mount namespace: /etc is an overlay, /opt, /run, /usr/local/bin and /var/lib are empty. The
fake linkd that `pip` installs is `Linkd.text()`. Every external command of the script goes through
a shim, so that a test can kill the script at the n-th of them. Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from linkd.drill.testbed import Namespace
from tests.support.lab import ROOT

SHIMMED = (
    *("cat", "chmod", "cp", "date", "find", "getent", "grep", "groupadd", "install", "journalctl"),
    *("ln", "ls", "mkdir", "mktemp", "mv", "readlink", "rm", "setpriv", "sleep", "systemctl"),
    *("systemd-run", "systemd-sysusers", "touch", "useradd"),
)
LOCK = "/run/linkd-install.lock"
STATE = "/var/lib/linkd/cursors.db"
SEGMENT = "/var/lib/linkd/log/000000000002.log"

_SHIM = r"""#!/bin/sh
# Kill the script at its n-th command, if a test wants that; else run the fake, or the real one.
if [ -e /run/fake/countdown ] && [ -s /run/linkd-install.lock ]; then
    read -r left </run/fake/countdown
    echo $((left - 1)) >/run/fake/countdown
    if [ "$left" -le 1 ]; then
        /bin/rm /run/fake/countdown
        echo "${0##*/} $*" >/run/fake/killed-at
        read -r victim </run/linkd-install.lock
        kill -9 "$victim"
        exit 137
    fi
fi
name=${0##*/}
[ ! -e "FAKES/$name" ] || exec "FAKES/$name" "$@"
PATH=/usr/sbin:/usr/bin:/sbin:/bin exec "$name" "$@"
"""

_SYSTEMCTL = r"""#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
s=/run/fake
echo "$*" >>$s/calls
start() {
    code=0
    /opt/linkd/bin/linkd run >>$s/journal 2>&1 || code=$?
    case $code in
    0) echo active >$s/active; readlink -f /opt/linkd >$s/running ;;
    2) echo failed >$s/active ;;
    75) echo activating >$s/active; echo 7 >$s/job ;;
    *) echo activating >$s/active ;;
    esac
}
case "$*" in
"is-active "*) cat $s/active; grep -qx active $s/active ;;
"show --value -p ActiveState "*) cat $s/active ;;
"show --value -p MainPID "*) cat $s/pid 2>/dev/null || echo 0 ;;
"show -p ActiveState "*)
    echo "ActiveState=$(cat $s/active)"
    echo NRestarts=0
    [ ! -e $s/job ] || echo "Job=$(cat $s/job)" ;;
"enable "*) echo enabled >$s/enabled ;;
"disable --now "*) echo disabled >$s/enabled; echo inactive >$s/active; rm -f $s/running ;;
"stop "*) echo inactive >$s/active; rm -f $s/job $s/running ;;
"start linkd-proof.service")
    conf=/run/systemd/system/linkd-proof.service.d/zzz-proof.conf
    out=$(sed -n 's/^StandardOutput=file://p' $conf)
    command=$(sed -n 's/^ExecStart=\(.\)/\1/p' $conf)
    exec setpriv --reuid linkd --regid linkd --clear-groups $command >"$out" 2>"$out.err" ;;
"start "*) [ "$(cat $s/active)" = active ] || start ;;
esac
"""

_PYTHON = r"""#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python3.99"
    ln -s python3.99 "$3/bin/python" ;;
"-m pip")
    while [ "$1" != --find-links ]; do shift; done
    cp "$2/linkd" "$(dirname "$0")/linkd"
    [ "$3" = linkd-daemon ] || mkdir -p "$(dirname "$0")/../lib/python3.99/site-packages/psycopg" ;;
"-c "*version_info*) echo "$0" ;;
"-c import venv"*) ;;
"-B "*/packaging/man.py)
    mkdir -p "$3/man1"
    echo .TH >"$3/man1/linkd.1" ;;
"-c "*) exec /usr/bin/python3 "$@" ;;
*) exec sh "$@" ;;
esac
"""


@dataclass(frozen=True)
class Linkd:
    """A fake linkd.

    Attributes:
        version: What `version` prints.
        run: What the service does: `ready`, `dies`, `refuses` (exit 2), or `hangs`.
        check: The exit code of `check`.
        format: Of the state: an older file is rewritten, a newer one is refused. Format 2 begins a
            segment with the content of /run/fake/segment, if that exists.
    """

    version: str
    run: str = "ready"
    check: int = 0
    format: int = 1

    def text(self) -> str:
        """Return it as a shell script."""
        code = {"ready": 0, "dies": 1, "refuses": 2, "hangs": 75}[self.run]
        return f"""
case $1 in
version) echo linkd {self.version} ;;
check)
    [ -r /etc/linkd/linkd.toml ] || {{ echo "linkd: linkd.toml: Permission denied" >&2; exit 2; }}
    [ {self.check} = 0 ] || echo "linkd: bad.toml: lim_its: unknown key" >&2
    echo '{{"node": {{"state_dir": "/var/lib/linkd"}}}}'
    exit {self.check} ;;
run)
    found=$(cat {STATE} 2>/dev/null || echo 0)
    if [ "$found" -gt {self.format} ]; then
        echo "linkd: {STATE} was written by a newer linkd (format $found)"
        exit 2
    fi
    if [ -e {SEGMENT} ] && [ {self.format} = 1 ]; then
        echo "linkd: {SEGMENT} was written by a newer linkd (format 2)"
        exit 2
    fi
    mkdir -p /var/lib/linkd/log
    echo {self.format} >{STATE}
    echo {self.format} >/var/lib/linkd/log/identity
    [ {self.format} = 1 ] || [ ! -e /run/fake/segment ] || cp /run/fake/segment {SEGMENT}
    exit {code} ;;
log)  # as the real one; a version refuses what a newer one has written
    [ {self.format} = 2 ] || exit 4
    cd /
    exec {sys.executable} -m linkd "$@" ;;
esac
"""


class FakeHost(Namespace):
    """The host; a context that ends it."""

    def __init__(self, directory: Path) -> None:
        """Make it; `directory` is an empty one."""
        super().__init__("fake")
        self._fakes = directory / "fakes"
        self._shims = directory / "shims"
        self._wheels = directory / "wheels"
        etc = directory / "etc"
        for made in (self._fakes, self._shims, self._wheels, etc):
            made.mkdir()
        programs = {
            "systemctl": _SYSTEMCTL,
            "python3.99": _PYTHON,
            "journalctl": "#!/bin/sh\nexec tail -n 20 /run/fake/journal\n",
            "systemd-sysusers": "#!/bin/sh\nexec useradd --system --user-group --no-create-home"
            " --comment linkd --home-dir /var/lib/linkd --shell /usr/sbin/nologin linkd\n",
            "systemd-run": '#!/bin/sh\nwhile [ "$1" != /bin/sh ]; do shift; done\n'
            ": >/run/fake/guarding\n"
            f"PATH={self._fakes}:/usr/sbin:/usr/bin:/sbin:/bin "
            'setsid sh -c \'"$@"; rm /run/fake/guarding\' sh "$@"'
            " >>/run/fake/guard 2>&1 </dev/null &\n",
        }
        for name, text in programs.items():
            (self._fakes / name).write_text(text)
            (self._fakes / name).chmod(0o755)
        for name in SHIMMED:
            (self._shims / name).write_text(_SHIM.replace("FAKES", str(self._fakes)))
            (self._shims / name).chmod(0o755)
        self.sh(
            f"mount -t tmpfs tmpfs {etc}; mkdir {etc}/up {etc}/work\n"
            f"mount -t overlay overlay -o lowerdir=/etc,upperdir={etc}/up,workdir={etc}/work /etc\n"
            "for d in /opt /run /usr/local/bin /var/lib; do\n"
            "mount -t tmpfs -o mode=755,size=128m tmpfs $d; done\n"
            # The machine that runs the tests may have the user.
            "sed -i /^linkd:/d /etc/passwd /etc/group /etc/shadow /etc/gshadow || true\n"
            "mkdir -p /run/systemd/system /run/fake\n"
            "cd /run/fake; echo inactive >active; echo disabled >enabled; : >journal\n"
        )

    def configure(self, mode: str = "0644") -> None:
        """Write a configuration."""
        self.sh(
            "mkdir -p /etc/linkd; echo >/etc/linkd/linkd.toml\n"
            f"chmod {mode} /etc/linkd/linkd.toml; chmod 755 /etc/linkd"
        )

    def command(self, *arguments: str, umask: str = "022") -> list[str]:
        """Return the command line that runs scripts/install with arguments."""
        path = f"PATH={self._shims}:/usr/sbin:/usr/bin:/sbin:/bin"
        script = str(ROOT / "scripts" / "install")
        python = f"PYTHON={self._fakes}/python3.99"
        run = ["env", "-i", path, python, "sh", "-c", f'umask {umask}; exec sh "$@"', "sh", script]
        return [*run, *arguments]

    def install(
        self, linkd: Linkd | None, *arguments: str, umask: str = "022"
    ) -> subprocess.CompletedProcess[str]:
        """Run scripts/install to its end, with wheels of a linkd."""
        if linkd is not None:
            arguments = ("--wheels", str(self.wheels(linkd)), *arguments)
        return self.run(*self.command(*arguments, umask=umask), check=False)

    def wheels(self, linkd: Linkd) -> Path:
        """Return a directory with the wheel of a linkd."""
        made = self._wheels / str(len(list(self._wheels.iterdir())))
        made.mkdir()
        (made / "linkd").write_text(linkd.text())
        return made

    def kill_at(self, number: int) -> None:
        """Have the next run killed at so many of its commands after it has the lock."""
        self.sh(f"cd /run/fake; rm -f {LOCK} killed-at; echo {number} >countdown")

    def killed_at(self) -> str | None:
        """Return the command at which a run was killed; None if there were not so many."""
        found = self.sh("rm -f /run/fake/countdown; cat /run/fake/killed-at 2>/dev/null || true")
        return found.strip() or None

    def settle(self, within: float = 15.0) -> None:
        """Wait until no install and no guard is under way."""
        end = time.monotonic() + within
        idle = "flock -n /run/linkd-install.lock true && [ ! -e /run/fake/guarding ]"
        while self.run("sh", "-c", idle, check=False).returncode != 0:
            assert time.monotonic() < end, "an install is still under way"
            time.sleep(0.02)

    def read(self, path: str) -> str:
        """Return a file, stripped; empty if there is none."""
        return self.sh(f"cat {path} 2>/dev/null || true").strip()

    def running(self) -> str:
        """Return the version that runs, by the release that the service was started from."""
        if self.read("/run/fake/active") != "active":
            return "none"
        release = self.read("/run/fake/running")
        return self.run(f"{release}/bin/linkd", "version").stdout.split()[-1]

    def installed(self) -> str:
        """Return the version that the next start runs."""
        return self.run("/opt/linkd/bin/linkd", "version").stdout.split()[-1]

    def releases(self) -> list[str]:
        """Return what is in /opt/linkd.releases."""
        return self.sh("ls -A /opt/linkd.releases").split()

    def __enter__(self) -> FakeHost:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()


def can_fake() -> bool:
    """Return whether this machine has what it needs."""
    return os.geteuid() == 0 and all(map(shutil.which, ("flock", "setpriv", "nsenter", "useradd")))
