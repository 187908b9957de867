"""The same as `cvpeft predict`, from a checkout."""

import sys

from cvpeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
