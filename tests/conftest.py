"""Shared by all tests: one thread of arithmetic each, so that a busy machine does not turn seconds into minutes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
