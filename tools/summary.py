"""The same as `cvpeft summary`, from a checkout."""

import sys

from cvpeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["summary", *sys.argv[1:]]))
