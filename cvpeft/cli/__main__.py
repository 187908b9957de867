"""`python -m cvpeft.cli COMMAND`."""

import sys

from cvpeft.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
