"""The commands of `python -m dart_train`. Heavy imports are inside the functions: `--help` and refusals are fast."""
