"""Objects under one root on any fsspec filesystem, retries of transient errors, and local scratch space."""
