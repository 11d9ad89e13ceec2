"""Workers that do what a task's prompt says, for tests on a real Ray."""

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from ray import cloudpickle

from pipeline.clock import SystemClock
from pipeline.contract.errors import Origin, Status
from pipeline.contract.units import Activity, Machine, Outcome, RenderShape, RenderTask, RenderUnit, TrainUnit
from pipeline.engine.policy import Policy
from pipeline.engine.scheduler import run
from pipeline.observer import Pulse

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have the tests on their path

SHAPE = RenderShape(width=64, height=64, steps=1, guidance=1.0, scheduler="ddim")
POLICY = Policy(poll_s=0.2, backoff_first_s=0.1, backoff_max_s=0.5)


class Worker:
    """Does what a task's prompt says; leaves a file in `folder` when it does so for the first time."""

    def __init__(self, folder, setup_error=None):
        self.folder = Path(folder)
        self.setup_error = setup_error
        self.doing = None
        self.retries = 0

    def setup(self):
        started = time.time()
        if (self.folder / "slow start").exists():
            self.linger(Activity("metric", 5, 10))
        if self.setup_error:
            raise FileNotFoundError(self.setup_error)
        (self.folder / f"setup-{os.getpid()}").write_text(f"{started} {time.time()}")

    def compute(self, unit):
        outcomes = self.outcomes(unit)
        return lambda: self.stored(outcomes, unit)

    def stored(self, outcomes, unit):
        """The end of a unit, which does what the prompt of its first task says."""
        mark, prompt = self.folder / f"stored {unit.tasks[0].key}", getattr(unit.tasks[0], "prompt", "")
        first = not mark.exists()
        mark.write_text(str(os.getpid()))
        if prompt == "store slowly" and first:
            self.linger(None)
        if prompt == "store slowly always":
            self.linger(None)
        if prompt == "raise while storing":
            raise OSError("the disk")
        if prompt == "memory while storing":
            raise MemoryError("no room for a buffer")
        return outcomes

    def outcomes(self, unit):
        if isinstance(unit, TrainUnit):
            self.linger(Activity("training", 3, 4, len(unit.tasks)))
            return [Outcome("concept", task.key, Status.OK, origin=Origin.TRAINED) for task in unit.tasks]
        return [replace(self.one(task), batch=len(unit.tasks)) for task in unit.tasks]

    def linger(self, doing):
        """Do something that shows until a file says that it is enough."""
        self.doing = doing
        while not (self.folder / "enough").exists():
            time.sleep(0.05)
        self.doing = None

    def one(self, task):
        mark = self.folder / task.key
        first = not mark.exists()
        mark.write_text(str(os.getpid()))
        if task.prompt == "hang" or (task.prompt == "hang once" and first):
            threading.Event().wait()
        if task.prompt == "wait":
            self.linger(None)
        if task.prompt == "retry":
            self.retries += 1
        if task.prompt == "memory":
            raise MemoryError("no room for 12 GB")
        if task.prompt == "raise":
            raise KeyError("colour")
        if task.prompt == "exit while storing":
            while not (any(self.folder.glob("stored *")) and (self.folder / "told").exists()):
                time.sleep(0.02)
        if task.prompt.startswith("exit"):
            os._exit(7)
        return Outcome(
            "render",
            task.key,
            Status.OK,
            origin=Origin.RENDERED,
            error_message=os.environ["OMP_NUM_THREADS"] + os.environ.get("EXTRA", ""),
            bytes=1000,
            accelerator_s=0.5,
            worker=str(os.getpid()),
        )

    def machine(self):
        return Machine("test machine", 80, 20)

    def activity(self):
        return self.doing

    def counters(self):
        """One retry of the storage for each task with such a prompt."""
        return {"storage_retries": self.retries}

    def close(self):
        (self.folder / "closed").write_text(str(os.getpid()))


class Source:
    def __init__(self, prompts, batch=2, first=0):
        tasks = [RenderTask(f"r{i}", p, "", (), 0, 0.6, 0.15, "local", SHAPE) for i, p in enumerate(prompts, first)]
        self.units = [RenderUnit(f"u{i}", tuple(tasks[i : i + batch])) for i in range(0, len(tasks), batch)]
        self.open = {task.key for task in tasks}

    def next(self):
        return self.units.pop(0) if self.units else None

    def record(self, outcomes):
        self.open -= {outcome.key for outcome in outcomes}
        return []

    def unfinished(self):
        return len(self.open)


def go(executor, prompts, policy=POLICY, batch=2, observer=None):
    outcomes = {}

    def sink(rows):
        if observer:
            observer.outcomes(rows)
        for row in rows:
            assert row.key not in outcomes
            outcomes[row.key] = row

    def stop(now):
        if observer:
            observer.working(Pulse(now, (), 2.5, 7))

    summary = run(Source(prompts, batch), executor, sink, policy=policy, clock=SystemClock(), stop=stop)
    return outcomes, summary
