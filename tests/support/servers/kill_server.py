"""Runs a small catalogue in forks that die in the middle of a file; as a program, for `DyingRuns`.

A process of its own does the forking, one that has imported everything and computed nothing: threads do not survive a
fork, and torch refuses to compute with a pool whose threads are gone.
"""

import itertools
import json
import os
import stat
import subprocess
import sys
import traceback
from pathlib import Path

HALF_WRITTEN = 9


class DyingRuns:
    """A server of runs that die; a context manager."""

    def __enter__(self):
        paths = os.pathsep.join([path for path in sys.path if path])
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def code_of(self, root, shop, write):
        """Exit code of a run that dies in the middle of its so manyth file: `HALF_WRITTEN`, or 0 if it has fewer."""
        print(json.dumps([root, str(shop), write]), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def die_in_the_middle(write):
    """From now on this process ends in the middle of its so manyth file: half of it is there, under a hidden name."""
    sync, count = os.fsync, itertools.count()

    def fsync(handle):
        state = os.fstat(handle)
        if stat.S_ISREG(state.st_mode) and next(count) == write:
            os.ftruncate(handle, state.st_size // 2)
            os._exit(HALF_WRITTEN)
        sync(handle)

    os.fsync = fsync


def serve():
    """One fork for each line of standard input; its exit code on standard output."""
    from diffusers import StableDiffusionPipeline  # noqa: F401 (or every fork would load it)

    import perfusion_ops.base_model  # noqa: F401 (or every fork would load it)
    from tests.support.shop import go

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a run prints is no answer
    for line in sys.stdin:
        root, shop, write = json.loads(line)
        child = os.fork()
        if not child:
            try:
                die_in_the_middle(write)
                go(root, Path(shop))
            except BaseException:  # noqa: BLE001 (whatever it is, a fork must not go on as the server)
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
