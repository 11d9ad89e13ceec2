"""Shared by all tests: one thread of arithmetic each, and the same examples of every property in every run.

`make test` draws the same examples on every machine. With PERFUSION_FRESH_EXAMPLES=10 (`make test-fresh`) each run
draws other ones, ten times as many.
"""

import os
import signal

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings
from hypothesis.internal.conjecture import providers

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a busy machine does not turn seconds into minutes
# Where somebody asks for more threads than there are cores, their long spins make everything five times slower.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell that starts a job with & makes it ignore SIGINT, and its children inherit that: Control-C would reach none.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_WAITING = ("behaviour", "project")  # folders of tests that start servers and processes, and wait for them
# Files that take minutes: `make test-long` runs them, as it runs single tests that are marked `long`.
_LONG = (
    "behaviour/test_chaos.py",
    "behaviour/test_deletion.py",
    "behaviour/test_disk_full.py",
    "behaviour/test_end_to_end.py",
    "behaviour/test_kills.py",
    "behaviour/test_monitoring.py",
    "behaviour/test_month.py",
    "behaviour/test_object_stores.py",
    "behaviour/test_operations.py",
    "behaviour/test_ray_nodes.py",
    "behaviour/test_root_before_rooms.py",
    "behaviour/test_schedules.py",
    "jobs/commands/test_nightly.py",
    "perfusion_ops/compare/test_compare.py",
    "perfusion_ops/export/test_device.py",
    "perfusion_ops/mini/methods/test_measurement.py",
    "perfusion_ops/mini/pairs/test_pairs.py",
    "perfusion_ops/mini/test_build.py",
    "perfusion_ops/mini/test_build_training.py",
    "perfusion_ops/mini/test_quality.py",
    "project/test_python_page.py",
)
FRESH = int(os.environ.get("PERFUSION_FRESH_EXAMPLES", "0"))
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.register_profile("fresh", derandomize=False, database=None, deadline=None, print_blob=True)
settings.load_profile("fresh" if FRESH else "same")

# Hypothesis also draws literals of the project's modules that are loaded. Which ones are loaded depends on the tests
# that ran before in the same process, so one seed would not always draw the same examples.
providers._get_local_constants = providers.Constants


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items):
    """Mark the long tests, and spread those that wait; no property fails because the machine is slow.

    PERFUSION_FRESH_EXAMPLES multiplies the examples of each property.
    """
    for item in items:
        if item.path.as_posix().endswith(tuple(f"/tests/{name}" for name in _LONG)):
            item.add_marker(pytest.mark.long)
    items[:] = spread(items)
    properties = {item.function for item in items if isinstance(item, pytest.Function)}  # parametrized: one function
    for test in filter(is_hypothesis_test, properties):
        given = test._hypothesis_internal_use_settings
        test._hypothesis_internal_use_settings = settings(
            given,
            max_examples=given.max_examples * max(1, FRESH),
            suppress_health_check={*given.suppress_health_check, HealthCheck.too_slow},
        )


def spread(items):
    """Files of tests that wait for servers and processes between the first half of those that compute.

    Small files come last, so that no process is left with a long one: those of `perfusion_ops`.
    """
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [path for path in files if path.parent.name in _WAITING]
    order = sorted((path for path in files if path not in waiting), key=lambda path: "perfusion_ops" in path.parts)
    step = max(1, len(order) // (2 * len(waiting))) if waiting else 1
    for number, path in enumerate(waiting):
        order.insert(number * (step + 1), path)
    return [item for path in order for item in files[path]]


@pytest.fixture
def one_thread():
    """Equal sums in equal order: with several threads, repeated results differ in the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
