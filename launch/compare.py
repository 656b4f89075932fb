"""deepspeed launch/compare.py recipes/compare.yaml key=value ...  (torchrun and plain python do as well)"""

import sys

from dart_train.cli.compare import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
