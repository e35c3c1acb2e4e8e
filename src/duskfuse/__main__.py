"""Run the command line as ``python -m duskfuse``."""

from duskfuse.cli import main

if __name__ == "__main__":
    main()
