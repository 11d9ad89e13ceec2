"""A run on three Ray nodes and a real S3 server that is hurt at random: `python -m tests.chaos`."""
