"""``python -m loramux.cli``."""

import sys

from .app import main

sys.exit(main())
