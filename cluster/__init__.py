"""Where a run happens: Ray on this machine, and slots as Ray actors."""
