"""The same as `cvpeft eval`, from a checkout."""

import sys

from cvpeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
