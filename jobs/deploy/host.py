"""A spec as a schedule of one machine: a service with a timer of systemd, or a line of a crontab."""

import os
import pwd
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from jobs.deploy.crontab import calendar_events, parse_cron
from jobs.deploy.options import Deployment
from jobs.output import FAILED_ROWS
from jobs.spec_file import SpecError
from pipeline.settings import RunSettings

_SECRETS = "/etc/perfusion"
_MARGIN_S = 20  # between the end of the time that a run has to stop and SIGKILL
_SPREAD_S = 300  # machines that share a schedule do not all start at once
_END = "PERFUSION_UNIT"
_TEMPORARY = ("/tmp/", "/var/tmp/")  # noqa: S108 (what PrivateTmp hides)

_SERVICE = """\
# Nothing restarts a run that failed or was stopped: the next start resumes it.
[Unit]
Description=perfusion rerender {spec}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User={user}
{secrets}
ExecStart={command}
{success}TimeoutStartSec={deadline_s}

# SIGTERM goes to the run alone, because its workers must live until it has drained them. If one of them dies because
# memory is full, the run replaces it.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={stop_s}
OOMPolicy=continue
LimitNOFILE=65536

# Not ProtectProc and PrivatePIDs: the lease of a run looks up the process that holds it. Not NoNewPrivileges,
# PrivateDevices and what implies them: CUDA opens devices, and may have to start the setuid nvidia-modprobe.
ProtectSystem=full
ProtectControlGroups=true
{private_tmp}
"""
_ACCEPTING = f"""\
# {FAILED_ROWS}: the run finished, and the tables name the rows that are not ok.
SuccessExitStatus={FAILED_ROWS}
"""
_TIMER = """\
[Unit]
Description=Schedule of {name}.service

[Timer]
{events}
# A start that was missed while the machine was off is made up for at boot. systemd never starts a service twice.
Persistent=true
RandomizedDelaySec={spread_s}

[Install]
WantedBy=timers.target
"""
_INSTALLER = """\
#!/bin/sh
# Installs {name}.service and {name}.timer and starts the timer: sudo sh THIS_FILE
# Only writes the two files into a folder: sh THIS_FILE FOLDER
# They name secrets and hold none.
set -eu
units=${{1:-/etc/systemd/system}}
cat > "$units/{name}.service" <<'{end}'
{service}{end}
cat > "$units/{name}.timer" <<'{end}'
{timer}{end}
[ $# -eq 0 ] || exit 0
systemctl daemon-reload
systemctl enable --now {name}.timer
"""


def systemd(deployment: Deployment, settings: RunSettings, spec: str) -> str:
    """A shell script that installs a service which runs `perfusion rerender` once, and the timer that starts it.

    Args:
        deployment: the options.
        settings: the spec.
        spec: path of the spec on this machine.

    Raises:
        SpecError: an option is missing, or the schedule has no exact translation.
    """
    deployment.require("systemd", ["schedule"])
    name = deployment.name if deployment.name.startswith("perfusion") else f"perfusion-{deployment.name}"
    events = calendar_events(parse_cron(str(deployment.schedule)), deployment.time_zone)
    program, path = _paths(deployment, spec)
    # A secret that is named must be there; the file with the name of the deployment may be absent.
    secrets = [f"EnvironmentFile={_environment(name)}" for name in deployment.secrets]
    service = _SERVICE.format(
        name=name,
        spec=_unit_text(path),
        user=deployment.host.user or pwd.getpwuid(os.geteuid()).pw_name,
        secrets="\n".join([*secrets, f"EnvironmentFile=-{_environment(deployment.name)}"]),
        command=" ".join([_unit_word(program, first=True), "rerender", _unit_word(path)]),
        success=_ACCEPTING if deployment.failed_rows == "accept" else "",
        deadline_s=deployment.deadline_s,
        stop_s=settings.policy.stop_s + _MARGIN_S,
        private_tmp="PrivateTmp=true"
        if not _temporary(program, path, settings)
        else "# Not PrivateTmp: the spec names files in the folder for temporary files.",
    )
    timer = _TIMER.format(name=name, events="\n".join(f"OnCalendar={event}" for event in events), spread_s=_SPREAD_S)
    return _INSTALLER.format(name=name, end=_END, service=service, timer=timer)


def cron(deployment: Deployment, settings: RunSettings, spec: str) -> str:  # noqa: ARG001 (as of all of a machine)
    """A line of a crontab that runs `perfusion rerender`; its lease keeps two runs apart.

    Args:
        deployment: the options.
        settings: the spec.
        spec: path of the spec on this machine.

    Raises:
        SpecError: the schedule is missing or not the same on every system, or the options have a time zone.
    """
    deployment.require("cron", ["schedule"])
    parse_cron(str(deployment.schedule))
    if "time_zone" in deployment.model_fields_set:
        raise SpecError(
            f"option time_zone is {deployment.time_zone!r}, and cron has the time zone of its machine alone: leave "
            "time_zone out, or use --kind systemd"
        )
    words = [*_paths(deployment, spec)]
    words.insert(1, "rerender")
    # `.` ends the shell with a message if a file is absent.
    given = [f". {_environment(name)};" for name in deployment.secrets]
    environment = ["set -a;", *given, "set +a;"] if given else []
    command = " ".join([*environment, shlex.join(words)])
    return f"{deployment.schedule} {command.replace('%', chr(92) + '%')}\n"  # cron reads a bare % as a line break


def _paths(deployment: Deployment, spec: str) -> tuple[str, str]:
    """Absolute paths of the program and of the spec.

    Raises:
        SpecError: this process is not an installed `perfusion`.
    """
    program = deployment.host.program or str(Path(sys.executable).with_name("perfusion"))
    if deployment.host.program is None and not Path(program).is_file():
        raise SpecError(
            f"{program} does not exist: give the path of the perfusion command, as in "
            "--option host.program=/opt/perfusion/bin/perfusion"
        )
    path = deployment.host.spec or str(Path(spec).absolute())
    if not path.isprintable():
        raise SpecError(f"the path {path!r} has characters that cannot be printed: rename the file or its folder")
    return program, path


def _temporary(program: str, spec: str, settings: RunSettings) -> bool:
    """Whether something that the run needs lies in a folder for temporary files."""
    named = (settings.root, settings.concepts, settings.prompts, settings.points, settings.base, settings.render_base)
    named += (settings.motion, *settings.controls.values())
    return any(path.startswith(_TEMPORARY) for path in (program, spec, *filter(None, named)))


def _environment(name: str) -> str:
    return f"{_SECRETS}/{name}.env"


def _unit_text(text: str) -> str:
    """Text in a unit, where % begins a specifier."""
    return text.replace("%", "%%")


def _unit_word(text: str, *, first: bool = False) -> str:
    """One word of a command in a unit; variables are not expanded in the first one."""
    escaped = _unit_text(text).replace("\\", "\\\\").replace('"', '\\"')
    escaped = escaped if first else escaped.replace("$", "$$")
    return f'"{escaped}"' if _needs_quotes(text) else escaped


def _needs_quotes(characters: Iterable[str]) -> bool:
    return not all(each.isalnum() or each in "/._-+,=@%$" for each in characters)
