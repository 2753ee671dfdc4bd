"""`python -m linkd` is `linkd`."""

from __future__ import annotations

from linkd.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
