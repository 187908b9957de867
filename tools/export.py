"""The same as `cvpeft export`, from a checkout."""

import sys

from cvpeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
