"""The same as `cvpeft demo`, from a checkout."""

import sys

from cvpeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
