"""`python -m mlxm`: the same command line where the console script is not on the path.

Its words are those of the `mlxm` script, whatever the interpreter.
"""

from __future__ import annotations

import sys

from mlxm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
