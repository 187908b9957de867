"""The same as `cvpeft compare`, from a checkout."""

import sys

from cvpeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
