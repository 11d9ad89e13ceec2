"""Several hosts on one machine: network namespaces joined by a bridge, each with its own name, processes and home.

The calling process is one more host, outside the cluster: `LAPTOP`. Needs root and Debian's iproute2.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec

SUBNET = "10.77.0"
LAPTOP = f"{SUBNET}.254"
GCS_PORT = 6390
_BIN = Path(sys.executable).parent
_RAY_FOLDER = Path("/tmp/ray")
_LOCK = Path("/tmp/perfusion-hosts.lock")
_OBJECT_STORE = str(80 * 2**20)


def why_not() -> str:
    """Why hosts cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "network namespaces need iproute2 and util-linux"
    tried = subprocess.run(["ip", "netns", "add", "perfusion-try"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "perfusion-try"], capture_output=True, check=False)
    return tried.stderr.strip()


@dataclass
class Host:
    """One host. `hidden`: folders that it sees empty."""

    name: str
    address: str
    folder: Path
    environment: Mapping[str, str]
    hidden: tuple[Path, ...] = ()
    first: subprocess.Popen | None = None
    running: list[subprocess.Popen] = field(default_factory=list)

    def boot(self) -> None:
        """Start the host's first process, whose end is the end of all others."""
        mounts = [(self.folder / "ray", _RAY_FOLDER), *((self.folder / "empty", hidden) for hidden in self.hidden)]
        steps = [f"mount --bind '{source}' '{target}'" for source, target in mounts]
        script = " && ".join([*steps, f"hostname {self.name}", "echo up", "exec sleep infinity"])
        own = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script]
        self.first = subprocess.Popen(
            ["ip", "netns", "exec", _namespace(self.name), *own], stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.first.stdout is not None
        assert self.first.stdout.readline() == b"up\n", f"host {self.name} does not start"

    def prefix(self) -> list[str]:
        """What a command begins with to run on this host."""
        assert self.first is not None
        [inside] = Path(f"/proc/{self.first.pid}/task/{self.first.pid}/children").read_text().split()
        return ["nsenter", "--target", inside, "--mount", "--uts", "--net", "--pid", f"--wd={Path.cwd()}"]

    def start(self, *command: str, **options) -> subprocess.Popen:
        """Start a command; it ends with the host."""
        environment = {**os.environ, **self.environment, **options.pop("env", {})}
        process = subprocess.Popen(
            [*self.prefix(), *command],
            env=environment,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **options},
        )
        self.running.append(process)
        return process

    def run(self, *command: str, timeout: float = 300, **options) -> subprocess.CompletedProcess:
        """Run a command to its end, with its output as text."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def ray(self, *arguments: str, restart: bool = False) -> subprocess.Popen:
        """`ray start` in the foreground; `restart`: started again when it ends, as Kubernetes does with a pod."""
        command = [str(_BIN / "ray"), "start", "--block", "--disable-usage-stats", "--node-ip-address", self.address]
        command += ["--object-store-memory", _OBJECT_STORE, *arguments]
        if restart:
            command = ["sh", "-c", 'while true; do "$@"; sleep 1; done', "sh", *command]
        log = (self.folder / "ray.log").open("ab")
        return self.start(*command, stdout=log, stderr=log)

    def head(self, *arguments: str) -> subprocess.Popen:
        """Start the head of a cluster, with Ray's Job API at its address."""
        return self.ray("--head", "--port", str(GCS_PORT), "--dashboard-host", self.address, *arguments)

    def join(self, head: "Host", *arguments: str, restart: bool = False) -> subprocess.Popen:
        """Join the cluster of a head."""
        return self.ray("--address", f"{head.address}:{GCS_PORT}", *arguments, restart=restart)

    def connect(self, on: bool) -> None:
        """Plug the network cable in or out."""
        _ip("link", "set", _cable(self.name), "up" if on else "down")

    def kill(self) -> None:
        """End every process of the host at once."""
        assert self.first is not None
        self.first.kill()
        for process in (self.first, *self.running):
            process.wait(30)
        self.running.clear()


@dataclass
class Network:
    """Makes hosts; `environment` is that of each."""

    folder: Path
    environment: Mapping[str, str]
    hosts: dict[str, Host] = field(default_factory=dict)

    def host(self, name: str, hidden: Sequence[Path] = ()) -> Host:
        """A new host with a cable to the bridge."""
        address = f"{SUBNET}.{len(self.hosts) + 1}"
        folder = self.folder / name
        for each in ("home", "ray", "empty"):
            (folder / each).mkdir(parents=True)
        namespace, cable = _namespace(name), _cable(name)
        _ip("netns", "add", namespace)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", cable, "master", _BRIDGE, "up")
        for inside in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            _ip("-n", namespace, *inside)
        environment = {"HOME": str(folder / "home"), **self.environment}
        host = self.hosts[name] = Host(name, address, folder, environment, tuple(hidden))
        host.boot()
        return host


_BRIDGE = "perfusion0"


@contextmanager
def network(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Network]:
    """A bridge to plug hosts into; it ends with all hosts and their processes. There is one at a time on a machine."""
    _RAY_FOLDER.mkdir(exist_ok=True)
    made = Network(folder, {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", **(environment or {})})
    with ExitStack() as stack:
        lock = stack.enter_context(_LOCK.open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_links()
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{LAPTOP}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        stack.callback(_end_of_hosts, made)
        yield made


def wait_until(condition, seconds: float, what: str) -> None:
    """Ask twice a second until `condition()` is true.

    Raises:
        AssertionError: it was not true in time.
    """
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {seconds:g} s"
        time.sleep(0.5)


def answers(url: str) -> bool:
    """Whether a web server answers at an address."""
    try:
        with fsspec.open(url, "rb") as file:
            return bool(file.read(1))
    except Exception:  # noqa: BLE001 (not yet, whatever the reason)
        return False


def _end_of_hosts(made: Network) -> None:
    for host in made.hosts.values():
        host.kill()
    _remove_links()


def _remove_links() -> None:
    """Remove all that this module has made, also in a process that was killed."""
    links = [path.name for path in Path("/sys/class/net").glob("pf-*")]
    for link in (*links, _BRIDGE):
        subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
    for namespace in Path("/run/netns").glob("perfusion-*"):
        subprocess.run(["ip", "netns", "del", namespace.name], check=False, capture_output=True)


def _namespace(name: str) -> str:
    return f"perfusion-{name}"


def _cable(name: str) -> str:
    return f"pf-{name}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
