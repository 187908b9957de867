"""The same as `cvpeft data`, from a checkout."""

import sys

from cvpeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
