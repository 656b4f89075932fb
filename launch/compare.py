"""deepspeed launch/compare.py recipes/compare.yaml key=value ...  (torchrun and plain python do as well)"""

import sys

from dart_train.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["compare", *sys.argv[1:]]))
