"""scripts/install on a host with a fake systemd: killed at every step, two at once, and so on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_host import LOCK, SEGMENT, STATE, FakeHost, Linkd, can_fake
from tests.support.logs import SegmentBench, append, draft
from tests.support.needs import lacking, need

OLD, NEW = Linkd("1.0"), Linkd("2.0")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    """Return a host, configured, without linkd."""
    need("root", "network namespaces")
    if not can_fake():
        lacking("flock, setpriv, nsenter or useradd")
    with FakeHost(tmp_path) as made:
        made.configure()
        yield made


@pytest.fixture
def node(host: FakeHost) -> FakeHost:
    """Return a host on which version 1.0 runs."""
    done = host.install(OLD)
    assert done.returncode == 0, done.stderr
    assert host.running() == "1.0"
    return host


def last(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of a run."""
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def test_a_first_installation_and_an_upgrade(host: FakeHost) -> None:
    done = host.install(OLD)
    assert last(done) == "install: linkd 1.0 is running"
    assert "waiting for linkd to become ready (up to 300 s)" in done.stdout
    assert host.read("/run/fake/enabled") == "enabled"
    assert host.install(NEW).returncode == 0
    assert host.running() == host.installed() == "2.0"
    assert host.install(Linkd("3.0")).returncode == 0
    assert len(host.releases()) == 2
    assert host.sh("readlink -e /usr/local/share/man/man1/linkd.1").startswith(
        "/opt/linkd.releases/"
    )
    back = host.install(None, "--back")
    assert last(back) == "install: linkd 2.0 is running"
    assert host.running() == "2.0"


@pytest.mark.parametrize("umask", ["077", "027", "000"])
def test_the_caller_s_umask_does_not_matter(host: FakeHost, umask: str) -> None:
    assert host.install(OLD, umask=umask).returncode == 0
    assert host.install(NEW, umask=umask).returncode == 0
    assert host.running() == "2.0"
    wrong = "find /opt/ -type d ! -perm 0755 -o -type f -perm /022 -o -type f ! -perm -044"
    assert host.sh(wrong) == ""


@pytest.mark.parametrize(
    "bad", [Linkd("2.0", "dies"), Linkd("2.0", "refuses"), Linkd("2.0", "refuses", format=2)]
)
def test_a_version_that_does_not_become_ready_is_taken_back(node: FakeHost, bad: Linkd) -> None:
    before = node.releases()
    done = node.install(bad)
    assert done.returncode == 1
    assert last(done).startswith("install: went back to the version that was installed before")
    assert last(done).endswith("linkd 1.0 is running")
    assert node.running() == node.installed() == "1.0"
    assert node.releases() == before


def test_a_state_that_the_version_before_finds_too_new_is_put_back(node: FakeHost) -> None:
    done = node.install(Linkd("2.0", "dies", format=2))
    assert f"put back {STATE}" in done.stderr
    assert node.read(STATE) == "1"
    assert node.sh(f"cat {STATE}.newer-*").strip() == "2"
    assert node.running() == "1.0"


@pytest.mark.parametrize("content", ["no message", "a message", "damage"])
def test_a_newer_segment_is_put_aside_if_it_holds_no_message(
    node: FakeHost, tmp_path: Path, content: str
) -> None:
    """The version that wrote it judges: the one before can't read it."""
    bench = SegmentBench(tmp_path / "bench")
    if content == "a message":
        append(bench, draft(b"one"))
    bench.close()
    (segment,) = (tmp_path / "bench").rglob("0*.log")
    if content == "damage":
        segment.write_bytes(b"x" + segment.read_bytes()[1:])
    node.sh(f"cp {segment} /run/fake/segment")
    done = node.install(Linkd("2.0", "dies", format=2))
    assert done.returncode == 1
    assert node.read(STATE) == "1"
    if content != "no message":
        wanted = f"linkd is DOWN: linkd: {SEGMENT} was written by a newer linkd (format 2)"
    else:
        wanted = "linkd 1.0 is running"
        assert f"put {SEGMENT} aside" in done.stderr
        assert node.sh(f"ls {SEGMENT}.*").startswith(f"{SEGMENT}.damaged-")  # linkd ignores these
        assert node.read("/var/lib/linkd/log/identity") == "1"
    assert last(done).endswith(wanted)


def test_a_version_before_that_does_not_run_either_is_reported(node: FakeHost) -> None:
    node.sh("echo 2 >/var/lib/linkd/cursors.db")  # also what is copied before the new version
    done = node.install(Linkd("2.0", "dies", format=2))
    assert done.returncode == 1
    assert f"linkd is DOWN: linkd: {STATE} was written by a newer linkd" in last(done)


def test_a_configuration_that_does_not_fit_stops_nothing(node: FakeHost) -> None:
    calls = node.read("/run/fake/calls").count("stop linkd")
    done = node.install(Linkd("2.0", check=2))
    assert done.returncode == 1
    assert "lim_its: unknown key" in done.stderr
    assert last(done).endswith("nothing was changed, linkd 1.0 is running")
    assert node.read("/run/fake/calls").count("stop linkd") == calls
    assert node.running() == node.installed() == "1.0"


def test_the_check_is_made_as_the_user_of_the_service(node: FakeHost) -> None:
    node.configure("0600")
    done = node.install(NEW)
    assert done.returncode == 1
    assert "linkd.toml: Permission denied" in done.stderr
    assert node.running() == "1.0"


@pytest.mark.parametrize("enabled", ["enabled", "disabled"])
def test_a_service_that_is_stopped_stays_stopped(node: FakeHost, enabled: str) -> None:
    node.sh(f"echo inactive >/run/fake/active; echo {enabled} >/run/fake/enabled")
    done = node.install(NEW)
    assert done.returncode == 0
    assert "was not running and is not started" in last(done)
    assert node.installed() == "2.0"
    assert node.read("/run/fake/active") == "inactive"
    assert node.read("/run/fake/enabled") == enabled


def test_two_at_once(node: FakeHost) -> None:
    wheels = node.wheels(NEW)
    commands = [node.command("--wheels", str(wheels)) for _ in range(4)]
    runs = [
        subprocess.Popen(
            [*node.prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    said = [run.communicate(timeout=30)[0] for run in runs]
    assert 0 in [run.returncode for run in runs]
    for run, text in zip(runs, said, strict=True):
        wanted = "linkd 2.0 is running" if run.returncode == 0 else "another install is under way"
        assert wanted in text
    node.settle()
    assert node.running() == node.installed() == "2.0"


def test_an_upgrade_keeps_what_several_hubs_need(node: FakeHost) -> None:
    count = "ls -d /opt/linkd/lib/python3*/site-packages/psycopg 2>/dev/null | wc -l"
    assert node.sh(count).strip() == "0"
    for version, arguments in (("2.0", ("--cluster",)), ("3.0", ())):
        assert node.install(Linkd(version), *arguments).returncode == 0
        assert node.running() == version
        assert node.sh(count).strip() == "1"


def test_a_second_one_is_refused_with_the_first_one_s_process(node: FakeHost) -> None:
    holder = node.popen(
        [
            "sh",
            "-c",
            f"exec 9>>{LOCK}; flock 9; echo $$ >{LOCK}; exec sleep 30",
        ]
    )
    try:
        node.sh(f"until grep -qx {holder.pid} {LOCK}; do sleep 0.01; done")
        for arguments in (("--uninstall",), ("--purge", "--yes"), ("--back",)):
            done = node.install(None, *arguments)
            assert done.returncode == 1
            assert f"another install is under way (process {holder.pid})" in done.stderr
    finally:
        holder.kill()
        holder.wait()
    assert node.running() == "1.0"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, 120, 10))
@pytest.mark.parametrize("run", ["ready", "dies"])
def test_killed_at_every_step(node: FakeHost, run: str, first: int) -> None:
    """After kill -9 at its n-th command the old or the new version runs, without another run."""
    runs = "1.0"
    for number in range(first, first + 10):
        new = Linkd(f"2.{number}", run, format=1 if run == "ready" else 2)
        node.kill_at(number)
        node.install(new)
        killed = node.killed_at()
        node.settle()
        before, runs = runs, node.running()
        said = (killed, node.read("/run/fake/guard"))
        assert runs in (before, new.version if run == "ready" else before), said
        assert node.installed() == runs, said
        assert "pending" not in node.releases(), said
        if killed is None:
            break
    assert first < 111 or killed is None, "there are more steps than are tried"
    assert node.install(Linkd("3.0", format=2)).returncode == 0
    assert node.running() == node.installed() == "3.0"
    assert len(node.releases()) == 2


def test_an_interrupted_wait_is_taken_back(node: FakeHost) -> None:
    wheels = node.wheels(Linkd("2.0", "hangs"))
    run = subprocess.Popen(
        [*node.prefix, *node.command("--wheels", str(wheels))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    for line in run.stdout:
        if "waiting for linkd" in line:
            break
    run.terminate()
    said = run.communicate(timeout=20)[0]
    assert "went back to the version that was installed before" in said
    assert said.strip().endswith("linkd 1.0 is running")
    node.settle()
    assert node.running() == node.installed() == "1.0"


def test_the_way_back_leads_to_what_has_worked_not_to_what_the_link_names(node: FakeHost) -> None:
    """As after a kill on a host where no guard could be started."""
    good = node.sh("readlink -f /opt/linkd").strip()
    broken = "/opt/linkd.releases/broken"
    node.sh(f"mkdir -p {broken}/bin; ln -sfn {broken} /opt/linkd")
    done = node.install(Linkd("2.0", "dies"))
    assert f"the way back is to {good}" in done.stderr
    assert last(done).endswith("linkd 1.0 is running")
    assert node.sh("readlink -f /opt/linkd").strip() == good


@pytest.mark.parametrize("action", ["upgrade", "back"])
def test_a_release_that_was_started_later_is_one_that_has_worked(
    node: FakeHost, action: str
) -> None:
    node.sh("echo inactive >/run/fake/active")
    assert node.install(NEW).returncode == 0
    release = node.sh("readlink -f /opt/linkd").strip()
    daemon = node.popen(["sh", "-c", "sleep 60", f"{release}/bin/linkd"])
    try:
        node.sh(
            f"echo {daemon.pid} >/run/fake/pid; echo active >/run/fake/active\n"
            f"echo {release} >/run/fake/running"
        )
        if action == "upgrade":
            done = node.install(Linkd("3.0", "dies"))
        else:
            assert last(node.install(None, "--back")).endswith("linkd 1.0 is running")
            done = node.install(None, "--back")
        assert last(done).endswith("linkd 2.0 is running")
        assert node.running() == node.installed() == "2.0"
    finally:
        daemon.kill()
        daemon.wait()


def test_a_python_that_is_gone_is_named_and_repaired(node: FakeHost) -> None:
    node.sh("rm /opt/linkd/bin/python3.99")
    done = node.run("/usr/local/bin/linkd", "run", check=False)
    assert done.returncode == 2
    assert "which this host has no longer: run " in done.stderr
    assert done.stderr.count("\n") == 1
    node.sh("echo failed >/run/fake/active")
    done = node.install(NEW)
    assert last(done) == "install: linkd 2.0 is running"
    assert node.running() == "2.0"


def test_a_release_that_a_process_uses_is_not_removed(node: FakeHost) -> None:
    release = node.sh("readlink -f /opt/linkd").strip()
    user = node.popen(["sh", "-c", "sleep 60", f"{release}/bin/linkd"])
    try:
        for version in ("2.0", "3.0", "4.0"):
            assert node.install(Linkd(version)).returncode == 0
        assert node.run("test", "-e", f"{release}/bin/linkd", check=False).returncode == 0
    finally:
        user.kill()
        user.wait()
    assert node.install(Linkd("5.0")).returncode == 0
    assert len(node.releases()) == 2


def test_a_full_disk_changes_nothing(node: FakeHost) -> None:
    node.sh("head -c 1G /dev/zero >/opt/fill || true")
    done = node.install(NEW)
    assert done.returncode == 1
    assert last(done).endswith("install: nothing was changed, linkd 1.0 is running")
    assert node.running() == node.installed() == "1.0"
    node.sh("rm /opt/fill")
    assert node.install(NEW).returncode == 0


def test_purge_empties_a_mount_point_and_removes_drop_ins(node: FakeHost) -> None:
    node.sh(
        "mount -t tmpfs tmpfs /var/lib/linkd; echo x >/var/lib/linkd/segment\n"
        "cd /etc/systemd/system; mkdir -p linkd.service.d; echo >linkd.service.d/a.conf\n"
        "echo 'state_dir = \"/srv/messages\"' >/etc/linkd/linkd.toml"
    )
    done = node.install(None, "--purge", "--yes")
    assert done.returncode == 0
    assert "/var/lib/linkd is emptied; it is a mount point and stays" in done.stdout
    assert "/srv/messages (node.state_dir)" in done.stderr
    assert node.sh("ls -A /var/lib/linkd; ls /opt; ls -d /etc/linkd 2>/dev/null || true") == ""
    left = "getent passwd linkd; ls -d /etc/systemd/system/linkd.service*"
    assert node.run("sh", "-c", left, check=False).stdout == ""


def test_a_user_that_was_there_before_stays(host: FakeHost) -> None:
    host.sh("useradd --home-dir /home/mine --shell /bin/sh --no-user-group linkd")
    assert host.install(OLD).returncode == 0
    assert host.sh("getent group linkd")
    assert host.install(None, "--purge", "--yes").returncode == 0
    assert "/home/mine" in host.sh("getent passwd linkd")


def test_a_masked_unit_is_left_alone(node: FakeHost) -> None:
    node.sh("ln -sfn /dev/null /etc/systemd/system/linkd.service")
    done = node.install(NEW)
    assert done.returncode == 1
    assert "is masked" in done.stderr
    assert node.installed() == "1.0"
