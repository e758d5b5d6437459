"""`python -m executor` is `datahub-executor`."""

import sys

from executor.cli import main

sys.exit(main())
