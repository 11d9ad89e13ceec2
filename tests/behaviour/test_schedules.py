"""Nightly starts as cron and systemd make them: with their environment, twice at a time, and after missed nights."""

import json
import os
import pwd
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.output import CRASH, FAILED_ROWS, OK
from tests.support.command import Shop

# A core that other tests share takes minutes for a run.
pytestmark = pytest.mark.timeout(1800)

PERFUSION = str(Path(sys.executable).with_name("perfusion"))
USER = pwd.getpwuid(os.geteuid()).pw_name
PROMPTS = [{"prompt": f"a photo of a {{product}} {place}"} for place in ("on the beach", "in the snow", "in a forest")]


class Night:
    """A shop with a space in its path, one product of it, and the schedules of its spec."""

    def __init__(self, folder):
        self.home = folder / "home"
        self.home.mkdir()
        (folder / "spring catalog").mkdir()
        self.shop = Shop(folder / "spring catalog")
        self.root = self.shop.folder / "results"

        self.stock(PROMPTS[:1])
        self.line, self.service = self.rendered("cron"), self.units()

    def stock(self, prompts):
        """Write the spec and its manifests: always at the same place."""
        self.spec = self.shop.spec("night", concepts=self.shop.concepts[:1], prompts=prompts)

    def rendered(self, kind):
        """A file for the spec, of the installed command."""
        words = [PERFUSION, "cluster", "yaml", self.spec, "--kind", kind, "--option", "schedule=0 2 * * *"]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout

    def units(self):
        """The service that the installer writes."""
        folder, installer = self.home / "units", self.home / "install.sh"
        folder.mkdir()
        installer.write_text(self.rendered("systemd"))
        subprocess.run(["/bin/sh", installer, folder], check=True, timeout=60)
        return (folder / "perfusion-night.service").read_text()

    def start(self, command):
        """Start a command as cron does: in a shell, at home, with four variables."""
        environment = {"HOME": str(self.home), "LOGNAME": USER, "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
        return subprocess.Popen(
            ["/bin/sh", "-c", command],
            cwd=self.home, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def files(self, *folders):
        """Every file below the root, or below some of its folders, with what changes when it is written again."""
        found = [path for folder in folders or ("",) for path in (self.root / folder).rglob("*") if path.is_file()]
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns, path.stat().st_size) for path in found}

    def published(self):
        """What the commit markers say, oldest run first."""
        markers = sorted(self.root.glob("runs/*/published.json"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(marker.read_text()) for marker in markers]


def ended(process):
    """Exit code, stdout and stderr of a process."""
    out, err = process.communicate(timeout=1200)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """A shop after its first night, in which cron started the command twice at a time."""
    night = Night(tmp_path_factory.mktemp("nights"))
    schedule, night.command = re.fullmatch(r"((?:\S+ ){5})(.*)\n", night.line).groups()
    assert schedule == "0 2 * * * "
    first = night.start(night.command)
    lease = holder(night, first)
    os.kill(lease["owner"]["pid"], signal.SIGSTOP)  # it holds its lease, however fast the machine is
    try:
        before = night.files()
        night.second = ended(night.start(night.command))
        night.changed = before.items() ^ night.files().items()
    finally:
        os.kill(lease["owner"]["pid"], signal.SIGCONT)
    night.first, night.owner = ended(first), lease["owner"]["pid"]
    return night


def holder(night, process):
    """The lease of the process, as soon as there is one."""
    deadline = time.monotonic() + 900
    while True:
        for path in night.root.glob("runs/*/lease/1.json"):
            return json.loads(path.read_text())
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.02)


def test_of_two_overlapping_starts_the_second_is_refused_and_changes_nothing(nights):
    code, out, err = nights.second
    assert (code, out) == (CRASH, "")
    assert f"is held by process {nights.owner} on " in err
    assert nights.changed == set()
    code, out, err = nights.first
    assert code == OK, err
    assert "finished in" in out
    assert nights.published()[0]["statuses"] == {"concepts": {"ok": 1}, "renders": {"ok": 1}}


def test_systemd_s_command_finds_nothing_left_to_do(nights):
    assert nights.first[0] == OK, nights.first
    nights.stock(PROMPTS[:1])
    before = nights.files()
    code, out, err = ended(nights.start(command_of(nights)))
    assert code == OK, err
    assert "already covers this spec" in out
    assert nights.files() == before


def test_rows_that_are_not_ok_are_a_success_for_systemd(nights):
    assert nights.first[0] == OK, nights.first
    nights.stock([PROMPTS[0], {"prompt": "a {stranger}"}])
    before = nights.files("weights", "images")
    code, out, err = ended(nights.start(command_of(nights)))
    assert code == FAILED_ROWS, err
    assert f"SuccessExitStatus={code}\n" in nights.service
    assert "unknown_concept" in out
    assert nights.files("weights", "images") == before


def test_a_start_after_a_missed_night_catches_up(nights):
    assert nights.first[0] == OK, nights.first
    nights.stock(PROMPTS[:2])  # of the night that is missed
    nights.stock(PROMPTS)
    before = nights.files("weights", "images")
    code, out, err = ended(nights.start(nights.command))
    assert code == OK, err
    assert re.search(r"renders +3 ok; 1 of them reused", out)
    assert nights.published()[-1]["statuses"] == {"concepts": {"ok": 1}, "renders": {"ok": 3}}
    after = nights.files("weights", "images")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


def command_of(nights):
    """What the service starts, for a shell: its only unusual character is a space, which both quote alike."""
    (command,) = re.findall(r"(?m)^ExecStart=(.*)$", nights.service)
    return command
