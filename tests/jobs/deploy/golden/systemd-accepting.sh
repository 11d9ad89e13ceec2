#!/bin/sh
# Installs perfusion-spring-catalog.service and perfusion-spring-catalog.timer and starts the timer: sudo sh THIS_FILE
# Only writes the two files into a folder: sh THIS_FILE FOLDER
# They name secrets and hold none.
set -eu
units=${1:-/etc/systemd/system}
cat > "$units/perfusion-spring-catalog.service" <<'PERFUSION_UNIT'
# Nothing restarts a run that failed or was stopped: the next start resumes it.
[Unit]
Description=perfusion rerender /srv/shop/spring catalog.yaml
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
User=shop
EnvironmentFile=/etc/perfusion/shop-bucket.env
EnvironmentFile=/etc/perfusion/shop-hub.env
EnvironmentFile=-/etc/perfusion/spring-catalog.env
ExecStart=/opt/perfusion/bin/perfusion rerender "/srv/shop/spring catalog.yaml"
# 3: the run finished, and the tables name the rows that are not ok.
SuccessExitStatus=3
TimeoutStartSec=86400

# SIGTERM goes to the run alone, because its workers must live until it has drained them. If one of them dies because
# memory is full, the run replaces it.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec=105
OOMPolicy=continue
LimitNOFILE=65536

# Not ProtectProc and PrivatePIDs: the lease of a run looks up the process that holds it. Not NoNewPrivileges,
# PrivateDevices and what implies them: CUDA opens devices, and may have to start the setuid nvidia-modprobe.
ProtectSystem=full
ProtectControlGroups=true
PrivateTmp=true
PERFUSION_UNIT
cat > "$units/perfusion-spring-catalog.timer" <<'PERFUSION_UNIT'
[Unit]
Description=Schedule of perfusion-spring-catalog.service

[Timer]
OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 02:00:00 Europe/Berlin
# A start that was missed while the machine was off is made up for at boot. systemd never starts a service twice.
Persistent=true
RandomizedDelaySec=300

[Install]
WantedBy=timers.target
PERFUSION_UNIT
[ $# -eq 0 ] || exit 0
systemctl daemon-reload
systemctl enable --now perfusion-spring-catalog.timer
