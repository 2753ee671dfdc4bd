"""The campaign: random faults on real daemons under traffic; a checker knows every record."""
