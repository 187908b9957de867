"""The same as `cvpeft train`, from a checkout."""

import sys

from cvpeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
