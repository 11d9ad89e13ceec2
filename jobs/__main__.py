"""`python -m jobs` is the `perfusion` command."""

from jobs.cli import main

if __name__ == "__main__":
    main()
