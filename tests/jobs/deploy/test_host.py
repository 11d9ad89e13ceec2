"""The schedules of one machine: units that systemd accepts, and a line that cron accepts."""

import re
import shlex
import shutil
import subprocess

import pytest

from jobs.spec_file import SpecError
from pipeline.settings import RunSettings
from tests.jobs.deploy.cases import FOR, OPTIONS

NAME = "perfusion-spring-catalog"


@pytest.fixture
def units(rendered, tmp_path):
    """The units that the installer writes into a folder: (service, timer)."""

    def write(options=OPTIONS, **changes):
        installer = tmp_path / "install.sh"
        installer.write_text(rendered("systemd", options, **changes))
        folder = tmp_path / "units"
        folder.mkdir(exist_ok=True)
        # No systemctl on the path: with a folder, the installer calls none.
        subprocess.run(["/bin/sh", installer, folder], check=True, timeout=60, env={"PATH": str(cat_alone(tmp_path))})
        assert sorted(file.name for file in folder.iterdir()) == [f"{NAME}.service", f"{NAME}.timer"]
        return [(folder / f"{NAME}.{kind}").read_text() for kind in ("service", "timer")]

    write.folder = tmp_path / "units"
    return write


def cat_alone(folder):
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    if not (programs / "cat").exists():
        (programs / "cat").symlink_to(shutil.which("cat"))
    return programs


def setting(unit, name):
    """The values of a setting of a unit."""
    return re.findall(rf"(?m)^{name}=(.*)$", unit)


def there(tmp_path, **host):
    """Options with a program that exists."""
    program = tmp_path / "bin" / "perfusion"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return {**OPTIONS, "host": {**OPTIONS["host"], "program": str(program), "user": "root", **host}}


@pytest.mark.parametrize(
    "path", ["/srv/shop/spec.yaml", "/srv/100% of $HOME/spring \"catalog\" \\ 'x'.yaml", "/srv/ü.yaml"]
)
@pytest.mark.parametrize("schedule", ["0 2 * * 1-5", "0 2 13 * 5", "@weekly"])
def test_systemd_accepts_the_units(units, tmp_path, path, schedule):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    units({**there(tmp_path, spec=path), "schedule": schedule})
    files = sorted(map(str, units.folder.iterdir()))
    done = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_unit_that_systemd_refuses_is_seen(units, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    service, _ = units(there(tmp_path))
    file = units.folder / f"{NAME}.service"
    file.write_text(service.replace("Type=oneshot", "Type=oneshoot").replace("KillMode", "KilMode"))
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60, check=False)
    assert "oneshoot" in done.stderr
    assert "KilMode" in done.stderr


def test_a_path_of_unusual_characters_is_one_word(units):
    service, _ = units({**OPTIONS, "host": {**OPTIONS["host"], "spec": "/srv/100% $HOME \"a\" \\ 'x'.yaml"}})
    # As a systemd that ran such a unit gave the words to its program.
    assert setting(service, "ExecStart") == [
        '/opt/perfusion/bin/perfusion rerender "/srv/100%% $$HOME \\"a\\" \\\\ \'x\'.yaml"'
    ]


def test_the_run_has_the_time_that_it_needs_to_stop(units):
    service, _ = units(policy={"drain_s": 300})
    stop_s = RunSettings(root="/r", concepts="/c", prompts="/p", policy={"drain_s": 300}).policy.stop_s
    assert int(*setting(service, "TimeoutStopSec")) > stop_s > 300
    assert setting(service, "TimeoutStartSec") == ["86400"]
    # With control-group, workers would get SIGTERM as well, and draining would wait for dead ones.
    assert (setting(service, "KillMode"), setting(service, "KillSignal")) == (["mixed"], ["SIGTERM"])


@pytest.mark.parametrize(("choice", "accepted"), [("accept", ["3"]), ("fail", [])])
def test_failed_rows_are_a_success_if_they_are_accepted(units, choice, accepted):
    service, _ = units({**OPTIONS, "failed_rows": choice})
    assert setting(service, "SuccessExitStatus") == accepted


def test_secrets_are_files_by_reference(units, rendered):
    service, _ = units()
    assert setting(service, "EnvironmentFile") == [
        "/etc/perfusion/shop-bucket.env",
        "/etc/perfusion/shop-hub.env",
        "-/etc/perfusion/spring-catalog.env",
    ]
    assert setting(service, "Environment") == []


def test_the_timer_makes_up_for_missed_nights(units):
    _, timer = units({**OPTIONS, "schedule": "0 2 13 * 5"})
    assert setting(timer, "OnCalendar") == ["*-*-13 02:00:00 Europe/Berlin", "Fri *-*-* 02:00:00 Europe/Berlin"]
    assert (setting(timer, "Persistent"), setting(timer, "RandomizedDelaySec")) == (["true"], ["300"])


def test_a_service_sees_the_files_of_its_spec(units):
    assert setting(units()[0], "PrivateTmp") == ["true"]
    assert setting(units(root="/var/tmp/results")[0], "PrivateTmp") == []
    assert setting(units(root="/var/tmpfiles/results")[0], "PrivateTmp") == ["true"]


def test_no_unit_takes_the_name_of_another_service(rendered):
    assert "/perfusion-cron.service" in rendered("systemd", {**OPTIONS, "name": "cron"})
    assert "/perfusion-night.service" in rendered("systemd", {**OPTIONS, "name": "perfusion-night"})


def test_without_options_the_files_are_those_of_this_machine(rendered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = rendered("systemd", {"schedule": "@daily"})
    (command,) = setting(text, "ExecStart")
    program, verb, spec = shlex.split(command)
    assert (program.startswith("/"), program.endswith("/perfusion"), verb) == (True, True, "rerender")
    assert spec == str(tmp_path / "specs" / "spring catalog.yaml")
    assert setting(text, "OnCalendar") == ["*-*-* 00:00:00 Etc/UTC"]


def test_a_crontab_has_one_line(rendered):
    text = rendered("cron", {**FOR["cron"], "host": {**OPTIONS["host"], "spec": "/srv/100% 'x'/spec.yaml"}})
    assert text.count("\n") == 1
    assert text.startswith(
        "0 2 * * 1-5 set -a; . /etc/perfusion/shop-bucket.env; . /etc/perfusion/shop-hub.env; set +a; "
    )
    assert "100\\% " in text
    # cron removes the backslash, and the shell reads what is left.
    words = shlex.split(text.split("set +a; ")[1].replace("\\%", "%"))
    assert words == ["/opt/perfusion/bin/perfusion", "rerender", "/srv/100% 'x'/spec.yaml"]
    assert rendered("cron", {**FOR["cron"], "secrets": []}).startswith(
        "0 2 * * 1-5 /opt/perfusion/bin/perfusion rerender "
    )


def test_a_missing_secret_ends_the_line_of_cron(rendered):
    command = rendered("cron", FOR["cron"]).removeprefix("0 2 * * 1-5 ")
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "/etc/perfusion/shop-bucket.env" in done.stderr
    assert "/opt/perfusion" not in done.stderr


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("systemd", {}, "systemd needs the option schedule"),
        ("cron", {}, "cron needs the option schedule"),
        ("systemd", {"schedule": "0 2 */2 * 1"}, "which is not the same on every system"),
        ("cron", {"schedule": "0 2 ? * *"}, "which is not the same on every system"),
        ("cron", {"schedule": "@daily", "time_zone": "Europe/Berlin"}, "leave time_zone out, or use --kind systemd"),
        ("systemd", {"schedule": "@daily", "host": {"program": "perfusion"}}, "option host.program is"),
        ("systemd", {"schedule": "@daily", "host": {"user": "a b"}}, "option host.user is"),
    ],
)
def test_what_cannot_be_scheduled_is_one_message(rendered, kind, options, message):
    with pytest.raises(SpecError) as caught:
        rendered(kind, options)
    (line,) = str(caught.value).splitlines()
    assert message in line


@pytest.mark.parametrize("kind", ["systemd", "cron", "dagster"])
def test_a_setting_that_would_have_no_effect_is_refused(perfusion, spec, kind):
    code, out, err = perfusion("cluster", "yaml", spec(), "--kind", kind, "--set", "render.steps=3")
    assert (code, out) == (2, "")
    assert f"perfusion: {kind} reads " in err
    assert "--set would have no effect: change the spec" in err
