"""``python -m heedmap`` and ``torchrun -m heedmap`` are the command."""

from heedmap.cli.main import main

if __name__ == "__main__":
    main()
