"""Perform the steps of packaging/Containerfile without a builder, and try what comes of them.

    sudo .venv/bin/python packaging/try_image.py [--page]

The base is a root file system made by debootstrap (scripts/bare-system makes it and keeps it in
LINKD_BARE). Each RUN, COPY, ENV and USER is performed on a layer above it. Then two containers run
with the limits of packaging/compose/compose.yml: a read-only root, no capabilities, a user that is
not root, volumes for state, peers and socket, each in namespaces of its own. They are paired and
exchange a message; they are stopped by SIGTERM, started again, and started without their volume.
--page writes docs/measurements/image.md. Needs root, debootstrap, iproute2, iptables and
curl. Exit: 0 if all is as promised.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linkd.drill.testbed import Host, Namespaces

ROOT = Path(__file__).resolve().parents[1]

SUITE = "trixie"
PAGE = """\
<!-- Made by packaging/try_image.py; don't edit it here. -->
# The container image

Tried {when} UTC on Linux {kernel} by `packaging/try_image.py --page`. No image builder and no
registry was available there: the script performs the steps of `packaging/Containerfile` on a Debian
{suite} made by debootstrap, not `debian:{suite}-slim`, and runs the result with the limits of
`packaging/compose/compose.yml` (read-only root file system, no capability, no new privileges): two
containers, each in namespaces of its own.

| what | seen |
|---|---|
{rows}

## With Podman

2026-12-01, Podman 4.3.1 with runc, no registry and no systemd: `podman import` made the base out
of the same Debian, and `podman build --isolation chroot --build-arg BASE=…` took 38 s; the image
has 471 MB, of which the base has 219. Two containers ran with `--read-only --cap-drop ALL
--security-opt no-new-privileges` and named volumes: user 10001, no capability in any set,
`NoNewPrivs: 1`. They were paired and exchanged a message by the commands of the compose example.
`podman stop` took 0.24 and 0.39 s, exit status 0. Without the volume for the state: exit status 2,
and the same sentence. Not tried: Docker, compose itself, and health checks by a timer.
"""
ENTER = """
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK" "$TOP"
mount -t proc proc "$TOP/proc"
mount -t tmpfs tmpfs "$TOP/tmp" -o mode=1777
mount --rbind /dev "$TOP/dev"
for file in hosts resolv.conf; do
    [ -e "$FILES/$file" ] || continue
    [ -e "$TOP/etc/$file" ] || : >"$TOP/etc/$file"
    mount --bind "$FILES/$file" "$TOP/etc/$file"
done
"""
OUTSIDE = "http://127.0.0.1:9480/healthz -o /dev/null"
READ_ONLY = 'mount -o remount,ro,bind "$TOP"\n'
AS_USER = (
    "setpriv", "--reuid", "10001", "--regid", "10001", "--clear-groups", "--no-new-privs",
    "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all",
)  # fmt: skip


def say(text: str) -> None:
    """Print a line."""
    print(f"try_image: {text}", flush=True)


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield the instructions of a Containerfile and their arguments."""
    for line in re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield word, rest.strip()


class Image:
    """The image's layers as directories, and what the Containerfile sets."""

    def __init__(self, directory: Path, base: Path) -> None:
        self.directory, self.base = directory, base
        self.environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        self.user = ""
        self.words: dict[str, list[str]] = {}
        self._stages: dict[str, Path] = {}
        self.layer = directory

    def build(self, text: str) -> None:
        """Perform all steps."""
        for number, (word, rest) in enumerate(steps(text)):
            begun = time.monotonic()
            if word == "FROM":
                name = rest.partition(" AS ")[2] or "last"
                self.layer = self._stages[name] = self.directory / name
                self.layer.mkdir()
            elif word == "RUN":
                self._run(rest)
            elif word == "COPY":
                self._copy(rest.split())
            elif word == "ENV":
                key, _, value = rest.partition("=")
                self.environment[key] = value
            elif word == "USER":
                self.user = rest
            elif word in ("ENTRYPOINT", "CMD"):
                self.words[word] = json.loads(rest)
            elif word == "HEALTHCHECK":
                self.words[word] = json.loads(rest.partition("CMD ")[2])
            elif word not in ("ARG", "STOPSIGNAL"):
                raise SystemExit(f"try_image: what is {word}?")
            say(f"{number + 1}: {word} {rest[:60]} ({time.monotonic() - begun:.1f} s)")

    def _run(self, command: str) -> None:
        work = self.directory / f"{self.layer.name}.work"
        for each in (work, self.directory / "top", self.directory / "files"):
            each.mkdir(exist_ok=True)
        for name in ("hosts", "resolv.conf"):
            (self.directory / "files" / name).write_text(Path("/etc", name).read_text())
        environment = self.paths(work) | {"DEBIAN_FRONTEND": "noninteractive"}
        keys = ("PIP_CERT", "PIP_INDEX_URL", "SSL_CERT_FILE")
        kept = {key: os.environ[key] for key in keys if key in os.environ}
        script = f'{ENTER}exec chroot "$TOP" /bin/sh -euc {shlex.quote(command)}'
        inner = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", script]
        done = subprocess.run(
            inner,
            env=self.environment | environment | kept,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise SystemExit(f"try_image: {command}: {done.stdout.decode()[-3000:]}")

    def paths(self, work: Path) -> dict[str, str]:
        """Return what ENTER takes."""
        places = {"LOWER": self.base, "UPPER": self.layer, "WORK": work}
        places |= {"TOP": self.directory / "top", "FILES": self.directory / "files"}
        return {key: str(value) for key, value in places.items()}

    def _copy(self, words: list[str]) -> None:
        top = ROOT
        if words[0].startswith("--from="):
            top = self._stages[words.pop(0).partition("=")[2]]
        *sources, target = words
        place = self.layer / target.lstrip("/")
        for source in sources:
            own = top / source.lstrip("/")
            if own.is_dir():
                ignored = shutil.ignore_patterns("__pycache__") if top is ROOT else None
                shutil.copytree(own, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
            else:
                into = place / own.name if target.endswith("/") else place
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(own, into)

    def size(self) -> int:
        """Return the bytes of the last stage above its base."""
        return sum(path.lstat().st_size for path in self.layer.rglob("*") if not path.is_dir())


class Container:
    """One container of the image on a host of its own."""

    def __init__(self, image: Image, name: str, host: Host, directory: Path, hosts: str) -> None:
        self.image, self.name, self.host = image, name, host
        self.directory = directory / name
        for each in ("top", "files", "work", "upper", "state", "peers", "socket"):
            (self.directory / each).mkdir(parents=True)
        for each, mode in (("state", 0o700), ("peers", 0o750), ("socket", 0o755)):
            os.chown(self.directory / each, 10001, 10001)  # as a new volume takes it from the image
            (self.directory / each).chmod(mode)
        (self.directory / "files" / "hosts").write_text(hosts)
        self.log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def _script(self, command: Sequence[str], volumes: Sequence[str], read_only: bool) -> str:
        lines = [ENTER]
        mounts = {"state": "var/lib/linkd", "peers": "etc/linkd/linkd.d", "socket": "run/linkd"}
        lines += [
            f'mount --bind "{self.directory / one}" "$TOP/{mounts[one]}"\n' for one in volumes
        ]
        own = f"{ROOT}/packaging/compose/{self.name}.toml"
        place = '"$TOP/etc/linkd/linkd.toml"'
        lines.append(f': >{place}\nmount --bind "{own}" {place}\n')
        lines.append(READ_ONLY if read_only else "")
        words = shlex.join(["chroot", "--", "TOP", *AS_USER, *command]).replace(" TOP ", ' "$TOP" ')
        return "".join(lines) + f"exec {words}"

    def _environment(self) -> dict[str, str]:
        paths = self.image.paths(self.directory / "work")
        own = {"TOP": "top", "FILES": "files", "UPPER": "upper"}
        paths |= {key: str(self.directory / name) for key, name in own.items()}
        paths["LOWER"] = f"{self.image.layer}:{self.image.base}"
        return self.image.environment | paths

    def start(
        self, volumes: Sequence[str] = ("state", "peers", "socket"), read_only: bool = True
    ) -> None:
        """Run it as `docker run --read-only --cap-drop ALL` does: the entry point is process 1."""
        words = self.image.words["ENTRYPOINT"] + self.image.words["CMD"]
        script = self._script(words, volumes, read_only)
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", script]
        with self.log.open("ab") as log:
            self._process = self.host.popen(command, self._environment(), stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        """The first process in it."""
        assert self._process is not None
        number = self._process.pid
        return int(Path(f"/proc/{number}/task/{number}/children").read_text().split()[0])

    def exec(self, *words: str, check: bool = True) -> str:
        """Run a command in it, as `docker exec` does."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--root", "--wd=/"]
        enter += ["--net", *AS_USER, *words]
        done = subprocess.run(
            enter, env=self.image.environment, capture_output=True, text=True, timeout=30
        )
        output = done.stdout + done.stderr
        if check and done.returncode:
            raise SystemExit(f"try_image: {self.name}: {shlex.join(words)}: {output}")
        return output

    def await_healthy(self, within: float = 20.0) -> float:
        """Wait until the health check passes; return how long that took."""
        begun = time.monotonic()
        while time.monotonic() < begun + within:
            time.sleep(0.1)
            try:
                if "running" in self.exec(*self.image.words["HEALTHCHECK"], check=False):
                    return time.monotonic() - begun
            except (IndexError, OSError):
                continue
        raise SystemExit(f"try_image: {self.name} is sick: {self.log.read_text()[-2000:]}")

    def stop(self) -> float:
        """Send SIGTERM to process 1; return how long it took to end."""
        begun = time.monotonic()
        os.kill(self.pid, 15)
        self.ended(10)
        return time.monotonic() - begun

    def ended(self, within: float) -> int:
        """Wait for its end; return its exit code."""
        assert self._process is not None
        code = self._process.wait(within)
        self._process = None
        return code

    def close(self) -> None:
        """End it in any case."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)


@contextmanager
def started(container: Container) -> Iterator[Container]:
    """Run a container."""
    try:
        container.start()
        yield container
    finally:
        container.close()


def status_of(pid: int) -> dict[str, str]:
    """Return who a process is and what it may."""
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(
        re.findall(r"^(Uid|Gid|CapEff|CapPrm|CapBnd|NoNewPrivs):\t(\S+)", text, re.MULTILINE)
    )


class Notes:
    """What was seen, and whether it was right."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def __call__(self, what: str, result: str, right: bool) -> None:
        """Keep a result; end the program where it is wrong."""
        say(f"{what}: {result}")
        if not right:
            raise SystemExit(f"try_image: WRONG: {what}: {result}")
        self.seen.append((what, result))


READ = ("linkd", "subscribe", "orders", "--from", "earliest", "--count")


def try_pair(hub: Container, edge: Container, note: Notes) -> None:
    """Start both, pair them, send messages, stop them."""
    with started(hub), started(edge):
        ready = max(hub.await_healthy(), edge.await_healthy())
        note("the health check passes after", f"{ready:.1f} s", ready < 10)
        who = status_of(hub.pid)
        note("user, group of process 1", f"{who['Uid']}, {who['Gid']}", who["Uid"] == "10001")
        caps = {who[key] for key in ("CapEff", "CapPrm", "CapBnd")}
        note("its capabilities: effective, permitted, bounding", "none", caps == {"0" * 16})
        wrote = hub.exec("sh", "-c", "touch /etc/x /opt/linkd/x /usr/x", check=False)
        note("a write to /etc, /opt, /usr", "read-only file system", wrote.count("Read-only") == 3)
        words = ("edge-1", "--address", "hub:9443", "--receive", "orders")
        code = re.search(r"linkd join (\S+)", hub.exec("linkd", "invite", *words))
        joined = edge.exec("linkd", "join", code[1] if code else "")
        up = re.search(r"\bup\b", joined)
        note("`linkd invite` in one, `linkd join` in the other", up[0] if up else joined, bool(up))
        sent = edge.exec("linkd", "publish", "orders", '{"id": 7}', "--wait", "hub").strip()
        note("`linkd publish orders … --wait hub`", sent, "hub has it" in sent)
        shown = hub.exec(*READ, "1").strip()
        note("`linkd subscribe orders`", f"`{shown}`", shown.endswith('{"id": 7}'))
        address = hub.exec("linkd", "token", "--dashboard").strip()
        probe = hub.host.sh(f"curl -s -o /dev/null -w '%{{http_code}} ' {OUTSIDE} '{address}'")
        right = address.startswith("http://127.0.0.1:9480/?token=")
        note("`/healthz`, the dashboard from outside", probe.strip(), right and probe == "200 200 ")
        took = [hub.stop()]
        waiting = edge.exec("linkd", "publish", "orders", '{"id": 8}').strip()
        note("the hub is stopped; `linkd publish orders`", waiting, waiting == "offset 2")
        took.append(edge.stop())
        note("SIGTERM to process 1 ends it within", f"{max(took):.1f} s", max(took) < 5)


def try_again(hub: Container, edge: Container, note: Notes) -> None:
    """Start both with the volumes of before: nothing may be missing."""
    with started(hub), started(edge):
        hub.await_healthy()
        edge.await_healthy()
        again = hub.exec(*READ, "1").strip()
        right = again.endswith('{"id": 7}')
        note("new containers, the same volumes: the message", f"`{again}`", right)
        end = time.monotonic() + 10
        while not (up := re.search(r"hub +up", edge.exec("linkd", "status"))):
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        note("and the link", "up" if up else "down", bool(up))
        late = hub.exec(*READ, "2").strip().splitlines()[-1].strip()
        note("and the message that waited", f"`{late}`", late.endswith('{"id": 8}'))


def try_without_volume(hub: Container, note: Notes) -> None:
    """Start it without a volume for its state: it must refuse, and say what is missing."""
    for read_only in (True, False):
        place = hub.log.stat().st_size
        hub.start(("peers", "socket"), read_only)
        code = hub.ended(20)
        said = hub.log.read_text()[place:].strip()
        kind = "read-only root" if read_only else "writable root"
        right = code == 2 and "is no volume" in said
        note(f"without the volume, {kind}", f"exit {code}: `{said}`", right)


def page(seen: list[tuple[str, str]], size: int) -> str:
    """Return docs/measurements/image.md."""
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    rows = [f"| {what} | {result.replace('|', '&#124;')} |" for what, result in seen]
    rows.append(f"| what the steps add to the base | {size >> 20} MiB |")
    return PAGE.format(when=when, kernel=platform.release(), suite=SUITE, rows="\n".join(rows))


def main() -> None:
    """Build, try, report."""
    if os.geteuid():
        raise SystemExit("try_image: needs root")
    bare = Path(os.environ.setdefault("LINKD_BARE", "/var/tmp/linkd-bare"))
    subprocess.run([ROOT / "scripts/bare-system", "--suite", SUITE, "--", "true"], check=True)
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="linkd-image-", dir=bare))
        )
        image = Image(directory / "image", bare / SUITE)
        image.directory.mkdir()
        image.build((ROOT / "packaging/Containerfile").read_text())
        say(f"built: {image.size() >> 20} MiB above the base")
        (directory / "net").mkdir()
        network = Namespaces(directory / "net")
        stack.callback(network.close)
        hosts = f"127.0.0.1 localhost\n{network.hub.address} hub\n"
        hub = Container(image, "hub", network.hub, directory, hosts)
        edge = Container(image, "edge-1", network.edge, directory, hosts)
        note = Notes()
        try_pair(hub, edge, note)
        try_again(hub, edge, note)
        try_without_volume(hub, note)
        if "--page" in sys.argv:
            made = page(note.seen, image.size())
            (ROOT / "docs/measurements/image.md").write_text(made)
    say("all is as promised")


if __name__ == "__main__":
    main()
