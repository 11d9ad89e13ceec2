"""Where the work of a command runs: on this machine, on a cluster, or as a job that is sent to one."""
