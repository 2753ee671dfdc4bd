"""The pure core: no Twisted, no socket, no clock, no disk. Inputs and `now` go in, effects come out."""
