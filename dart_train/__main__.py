"""`python -m dart_train COMMAND ...`."""

from .cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
