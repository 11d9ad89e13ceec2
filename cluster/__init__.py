"""Where a run happens: how many accelerator slots there are and how Ray is reached. Nothing of the method."""
