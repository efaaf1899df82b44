"""``python -m torchmetrics_cam``."""

import sys

from torchmetrics_cam.cli import main

if __name__ == "__main__":
    sys.exit(main())
