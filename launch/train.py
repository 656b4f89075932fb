"""deepspeed launch/train.py recipes/llava_dart.yaml key=value ...  (torchrun and plain python do as well)"""

import sys

from dart_train.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
