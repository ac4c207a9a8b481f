"""`python -m overhaul`: the command line where the command `overhaul` is not on the path."""

from overhaul.cli import main

if __name__ == "__main__":
    main()
