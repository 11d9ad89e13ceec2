"""A real S3 server on loopback: SeaweedFS from its wheel, with an identity that may do everything."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import s3fs

_KEY, _SECRET = "catalogue", "not-so-secret"
_PATIENCE_S = 120
_ATTEMPTS = 3


@dataclass(frozen=True)
class Server:
    """One that runs; `options` are what Storage takes."""

    endpoint: str
    process: subprocess.Popen

    @property
    def options(self):
        return {"s3": {"key": _KEY, "secret": _SECRET, "endpoint_url": self.endpoint}}

    @property
    def environment(self):
        """What a command needs to find it: as for any S3 store, secrets come from there."""
        return {
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def s3_server(
    folder: Path,
    bucket: str = "shop",
    *,
    ip: str = "127.0.0.1",
    inside: Sequence[str] = (),
    others: Sequence[dict] = (),
) -> Iterator[Server]:
    """A server with an empty bucket whose data lies in `folder`; gone at the end.

    `ip` is where it listens, and `inside` what a command begins with to run on the host that has this address. `others`
    are more identities, as SeaweedFS takes them.
    """
    identity = {"accessKey": _KEY, "secretKey": _SECRET}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    config = folder / "identities.json"
    us = {"name": "us", "credentials": [identity], "actions": actions}
    config.write_text(json.dumps({"identities": [us, *others]}))
    for attempt in range(1, _ATTEMPTS + 1):
        server = _started(folder, config, ip, inside)
        try:
            if _answers(server):
                s3fs.S3FileSystem(**server.options["s3"]).mkdir(bucket)
                yield server
                return
        finally:
            server.process.kill()  # nothing there is to be kept
            server.process.wait(30)
        assert attempt < _ATTEMPTS, f"no S3 server: {(folder / 'log.txt').read_text(errors='replace')[-2000:]}"


def _started(folder: Path, config: Path, ip: str, inside: Sequence[str]) -> Server:
    """A server on ports that were free a moment ago; another process may take one before it does."""
    free = iter(free_ports(8))
    ports = {name: (next(free), next(free)) for name in ("master", "volume", "filer", "s3")}
    command = [
        *inside, str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "server",
        f"-dir={folder}", f"-ip={ip}", f"-ip.bind={ip}",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=50",
        "-filer", f"-filer.localSocket={folder / 'filer.sock'}",
        "-s3", f"-s3.config={config}", f"-s3.localSocket={folder / 's3.sock'}",
        "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        *(f"-{name}.port={http}" for name, (http, _) in ports.items()),
        *(f"-{name}.port.grpc={grpc}" for name, (_, grpc) in ports.items()),
    ]  # fmt: skip
    with (folder / "log.txt").open("wb") as log:
        return Server(f"http://{ip}:{ports['s3'][0]}", subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))


def _answers(server: Server) -> bool:
    """Wait until its port answers, and it is not another program's; the gateway is the last part to come up."""
    ends = time.monotonic() + _PATIENCE_S
    host, _, port = server.endpoint.removeprefix("http://").rpartition(":")
    address = (host, int(port))
    while server.process.poll() is None and time.monotonic() < ends:
        try:
            socket.create_connection(address, 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return server.process.poll() is None
    return False


def free_ports(count: int) -> list[int]:
    """So many that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
