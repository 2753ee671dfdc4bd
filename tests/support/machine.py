"""A machine with a real systemd: booted in namespaces of its own over a throw-away copy of a root.

Everything that the booted system writes goes to a tmpfs that ends with it: its root is an overlay,
and /tmp, /run, /dev and the cgroups are its own; /sys and /proc/sys are read-only, so that it
changes nothing of the machine that runs it. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

BOOT = r"""
mount -t tmpfs -o mode=755 tmpfs "$S"
mkdir "$S/up" "$S/work" "$S/root"
r=$S/root
mount -t overlay overlay -o lowerdir="$LOWER",upperdir="$S/up",workdir="$S/work" "$r"
mount -t proc proc "$r/proc"
mount --bind "$r/proc/sys" "$r/proc/sys"
mount -o remount,bind,ro "$r/proc/sys"
[ ! -e "$r/proc/sysrq-trigger" ] || mount --bind /dev/null "$r/proc/sysrq-trigger"
mount -t tmpfs -o mode=755 tmpfs "$r/dev"
for node in null zero full random urandom tty; do
    : >"$r/dev/$node"
    mount --bind "/dev/$node" "$r/dev/$node"
done
mkdir "$r/dev/pts" "$r/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$r/dev/pts"
ln -s pts/ptmx "$r/dev/ptmx"
ln -s /proc/self/fd "$r/dev/fd"
mount -t tmpfs -o mode=1777 tmpfs "$r/dev/shm"
mount -t sysfs -o ro sysfs "$r/sys"
mount -t tmpfs -o mode=755 tmpfs "$r/run"
mkdir "$r/run/lock"
mount -t tmpfs -o mode=1777 tmpfs "$r/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$r/var/tmp"
# Debian 13 can't do with cgroups of old.
if [ -e /sys/fs/cgroup/cgroup.controllers ] || [ "$LOWER" != / ]; then
    mount -t cgroup2 cgroup2 "$r/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$r/sys/fs/cgroup"
    mkdir "$r/sys/fs/cgroup/unified" "$r/sys/fs/cgroup/systemd"
    mount -t cgroup2 cgroup2 "$r/sys/fs/cgroup/unified"
    mount -t cgroup -o none,name=systemd cgroup "$r/sys/fs/cgroup/systemd"
fi
# Nothing that would reach for the kernel or the devices of the machine that runs this.
for masked in modules-load sysctl udevd udev-trigger binfmt; do
    ln -sf /dev/null "$r/etc/systemd/system/systemd-$masked.service"
done
hostname "$NAME"
ip link set lo up
cd "$r"
mkdir -p old
pivot_root . old
export container=unshare
# Shared among its own: credentials are mounted from a namespace below it.
exec chroot . /bin/sh -c 'umount -l /old; mount --make-rshared /
    exec /lib/systemd/systemd --system --unit=basic.target'
"""


def cgroup_roots() -> list[Path]:
    """Return the cgroup hierarchies in which systemd makes groups: one, or several of old."""
    top = Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        return [top]
    return [
        top / name for name in ("unified", "systemd", "devices", "pids") if (top / name).is_dir()
    ]


class Machine:
    """A booted machine; a context that ends it.

    Attributes:
        name: Its host name.
        pid: Of its systemd, as seen from outside.
    """

    def __init__(self, name: str, directory: Path, root: str = "/") -> None:
        """Boot it, within 60 s.

        `directory` is an empty one for its mounts. `root` is the root that it gets a copy of, or
        several, the uppermost first, with colons between.

        Raises:
            RuntimeError: It did not boot; the message has what it said.
        """
        self.name = name
        self._cgroups = [root / f"linkd-test-{os.getpid()}-{name}" for root in cgroup_roots()]
        self._console = directory / "console"
        mounts = directory / "mounts"
        mounts.mkdir()
        join = []
        for cgroup in self._cgroups:
            cgroup.mkdir(exist_ok=True)
            join.append(f"echo $$ > {cgroup}/cgroup.procs")
        unshare = (
            "exec unshare --mount --pid --fork --uts --ipc --cgroup --net --kill-child "
            '--propagation private sh -euc "$BOOT"'
        )
        with self._console.open("wb") as console:
            self._boot = subprocess.Popen(
                ["sh", "-euc", "\n".join([*join, unshare])],
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "S": str(mounts),
                    "LOWER": root,
                    "NAME": name,
                    "BOOT": BOOT,
                },
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.pid = self._first_process()
            self._booted()
        except BaseException:
            self.close()
            raise

    def _first_process(self) -> int:
        children = Path(f"/proc/{self._boot.pid}/task/{self._boot.pid}/children")
        for _ in range(200):
            if self._boot.poll() is not None:
                break
            found = children.read_text().split()
            if found:
                return int(found[0])
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} did not start: {self._console.read_text()}")

    def _booted(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and self._boot.poll() is None:
            # Until pivot_root is done, nothing may be run: its root would be the outer one.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                if Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n":
                    state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                    if state in ("running", "degraded"):
                        return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not boot: {self._console.read_text()}")

    def enter(self, *command: str) -> list[str]:
        """Return the command line that runs `command` on it, as its root."""
        namespaces = ["-m", "-p", "-u", "-i", "-C", "-n", "-r", "-w"]
        return ["nsenter", "-t", str(self.pid), *namespaces, "--", *command]

    def run(
        self, *command: str, check: bool = True, timeout: float = 60.0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on it to its end.

        Raises:
            RuntimeError: It failed, and `check` is set.
            subprocess.TimeoutExpired: It took longer than `timeout` seconds.
        """
        done = subprocess.run(
            self.enter(*command),
            capture_output=True,
            text=True,
            timeout=timeout,
            input=stdin,
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )
        if check and done.returncode != 0:
            said = (done.stderr + done.stdout).strip()
            raise RuntimeError(f"{self.name}: {' '.join(command)}: exit {done.returncode}: {said}")
        return done

    def sh(self, script: str, timeout: float = 60.0) -> str:
        """Run a shell script on it, stop at its first error, and return its output."""
        return self.run("sh", "-euc", script, timeout=timeout).stdout

    def write(self, path: str, text: str, mode: str = "0640", group: str = "linkd") -> None:
        """Write a file on it, owned by root."""
        script = 'mkdir -p "$(dirname "$1")"; cat > "$1"; chown root:"$3" "$1"; chmod "$2" "$1"'
        self.run("sh", "-euc", script, "sh", path, mode, group, stdin=text)

    def show(self, unit: str, name: str) -> str:
        """Return one property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def main_pid(self, unit: str = "linkd.service") -> int:
        """Return the main process of a unit, as seen from inside; 0 if there is none."""
        return int(self.show(unit, "MainPID"))

    def journal(self, unit: str = "linkd.service") -> str:
        """Return the journal of a unit, messages only."""
        return self.run("journalctl", "-u", unit, "-o", "cat", "--no-pager").stdout

    def wait_active(self, unit: str = "linkd.service", within: float = 20.0) -> float:
        """Wait until a unit is active; return how many seconds that took.

        Raises:
            RuntimeError: It was not in time; the message has its journal.
        """
        begun = time.monotonic()
        while (state := self.show(unit, "ActiveState")) != "active":
            if time.monotonic() - begun > within:
                raise RuntimeError(f"{self.name}: {unit} is {state}\n{self.journal(unit)}")
            time.sleep(0.05)
        return time.monotonic() - begun

    def close(self) -> None:
        """End it and everything in it."""
        if self._boot.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(getattr(self, "pid", self._boot.pid), signal.SIGKILL)
            try:
                self._boot.wait(10)
            except subprocess.TimeoutExpired:
                self._boot.kill()
                self._boot.wait(10)
        for cgroup in self._cgroups:
            for path in sorted(cgroup.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                cgroup.rmdir()

    def __enter__(self) -> Machine:
        """Return self."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()


def join(one: Machine, two: Machine) -> None:
    """Join two machines by a line: 10.98.0.1 and 10.98.0.2."""
    one.sh(
        "ip link add eth0 type veth peer name eth1\n"
        "ip addr add 10.98.0.1/24 dev eth0; ip link set eth0 up"
    )
    # The other end is moved from outside, where both pids are known.
    subprocess.run(
        ["nsenter", "-t", str(one.pid), "-n", "ip", "link", "set", "eth1", "netns", str(two.pid)],
        check=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    two.sh("ip link set eth1 name eth0; ip addr add 10.98.0.2/24 dev eth0; ip link set eth0 up")


def bridge(machines: Mapping[str, Machine], addresses: Mapping[str, str]) -> None:
    """Join machines by a switch, which is in the first of them; each gets its address of a /24."""
    first, *others = machines.values()
    first.sh("ip link add eth0 type bridge; ip link set eth0 up")
    for number, machine in enumerate(others):
        first.sh(
            f"ip link add port{number} type veth peer name far{number}\n"
            f"ip link set port{number} master eth0 up"
        )
        # The other end is moved from outside, where both pids are known.
        subprocess.run(
            ["nsenter", "-t", str(first.pid), "-n",
             "ip", "link", "set", f"far{number}", "netns", str(machine.pid)],
            check=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip
        machine.sh(f"ip link set far{number} name eth0; ip link set eth0 up")
    for name, machine in machines.items():
        machine.sh(f"ip addr add {addresses[name]}/24 dev eth0")


def host_files() -> Iterator[str]:
    """Return what lies in /run and /dev of the machine that runs the tests: it must stay.

    Locks of drills come and go with tests that run at the same time.
    """
    for top in ("/run", "/dev"):
        for path in sorted(Path(top).iterdir()):
            if not path.name.startswith("linkd-drill-"):
                yield str(path)
