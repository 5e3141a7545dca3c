"""The command line for launchers that start a module: ``torchrun -m rerank_trainer train config.yaml``."""

import sys

from rerank_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
