"""The same as `cvpeft benchmark`, from a checkout."""

import sys

from cvpeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
