"""`python -m linkd.cli`: the command without an installation."""

import sys

from linkd.cli import main

sys.exit(main())
