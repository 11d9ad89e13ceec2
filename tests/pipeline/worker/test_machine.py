"""What a worker says of the machine that it runs on."""

import os

import torch

from pipeline.worker.machine import machine_of


def test_the_machine_of_the_cpu_is_this_computer_and_what_this_process_had_of_its_memory():
    before = machine_of(torch.device("cpu"))
    assert before.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert before.kind.endswith(f", {round(before.memory_bytes / 2**30)} GiB")
    more = torch.ones(before.peak_bytes // 4 + 2**26, dtype=torch.float32)  # as many bytes as the peak, and 256 MiB
    after = machine_of(torch.device("cpu"))
    assert after.kind == before.kind
    assert before.peak_bytes + 2**27 < after.peak_bytes < before.memory_bytes
    assert more.sum() > 0
