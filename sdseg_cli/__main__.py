"""`python -m sdseg_cli`, as torchrun needs it."""

from sdseg_cli.cli.app import main

if __name__ == "__main__":
    main()
