"""`python -m lingene ...`, for torchrun too."""

import sys

from .main import main


if __name__ == "__main__":
    sys.exit(main())
