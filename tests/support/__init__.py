"""What tests stand on: the lab (hosts, faults, daemons, relays) and typed fakes."""
