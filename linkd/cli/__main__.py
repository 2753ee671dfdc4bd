"""`python -m linkd.cli`: the command where it isn't installed."""

import sys

from linkd.cli import main

sys.exit(main())
