"""`python -m modeling_lingene.cli ...`: the command line, which is `lingene`, by the package's own name.

torchrun --nproc_per_node 4 -m modeling_lingene.cli decompose --data digits --out run
"""

import sys

from lingene.commands import COMMANDS
from lingene.main import build_parser, main


__all__ = ["COMMANDS", "build_parser", "main"]


if __name__ == "__main__":
    sys.exit(main())
