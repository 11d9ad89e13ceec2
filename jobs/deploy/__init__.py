"""Files that run a spec elsewhere: on Kubernetes, on clouds and under schedulers."""
