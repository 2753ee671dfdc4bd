"""The version of linkd, also that of its packages."""

VERSION = "0.1.0"
