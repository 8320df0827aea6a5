"""`python -m soupkit`, hence `torchrun -m soupkit …`."""

from soupkit.cli.app import main

if __name__ == "__main__":
    main()
