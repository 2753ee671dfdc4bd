"""What the host tells of time: which boot this is, and whether its clock is kept right."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from linkd import clock


@pytest.fixture
def on_tmpfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_is_tmpfs", lambda folder: True)


@pytest.mark.usefixtures("on_tmpfs")
def test_the_word_of_a_boot_stays_until_its_folder_is_emptied(tmp_path: Path) -> None:
    word = clock.boot_word(tmp_path)
    assert len(word) == 32
    assert clock.boot_word(tmp_path) == word
    assert [path.name for path in tmp_path.iterdir()] == ["boot"]
    (tmp_path / "boot").unlink()
    assert clock.boot_word(tmp_path) not in ("", word)
    (tmp_path / "boot").write_bytes(b"\xff broken off")
    assert clock.boot_word(tmp_path) not in ("", word)
    assert clock.boot_word(tmp_path / "missing") == ""


def test_a_word_on_a_disk_would_outlive_the_boot(tmp_path: Path) -> None:
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = {line[4]: line[line.index("-") + 1] for line in mounts}
    for mount, kind in kinds.items():
        if Path(mount).is_dir():
            assert clock._is_tmpfs(Path(mount)) == (kind in ("tmpfs", "ramfs")), mount
    if not clock._is_tmpfs(tmp_path):
        assert clock.boot_word(tmp_path) == ""


def test_time_since_the_boot_counts_what_the_host_slept() -> None:
    assert clock.boottime() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=1.0)


@pytest.mark.parametrize(
    ("state", "status", "right"),
    [(0, 0, True), (0, 0x2001, True), (5, 0, False), (0, 0x40, False), (5, 0x40, False)],
)
def test_the_kernel_says_whether_the_clock_is_synchronised(
    monkeypatch: pytest.MonkeyPatch, state: int, status: int, right: bool
) -> None:
    def adjtimex(timex: ctypes.Array[ctypes.c_char]) -> int:
        place = 5 * ctypes.sizeof(ctypes.c_long)
        ctypes.c_int.from_buffer(timex, place).value = status
        return state

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **more: SimpleNamespace(adjtimex=adjtimex))
    assert clock.is_synchronised() is right


def test_a_unit_that_may_not_ask_the_kernel_looks_for_timesyncds_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = SimpleNamespace(adjtimex=lambda timex: -1)
    monkeypatch.setattr(clock, "_TIMESYNC", tmp_path / "synchronized")
    for library in (refused, SimpleNamespace()):
        monkeypatch.setattr(ctypes, "CDLL", lambda *args, found=library, **more: found)
        (tmp_path / "synchronized").unlink(missing_ok=True)
        assert clock.is_synchronised() is False
        (tmp_path / "synchronized").touch()
        assert clock.is_synchronised() is True


def test_the_real_kernel_answers() -> None:
    assert clock.is_synchronised() in (True, False)
