"""`python -m vidi`, and `torchrun -m vidi`."""

from vidi.cli import main

if __name__ == "__main__":
    main()
