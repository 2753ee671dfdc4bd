"""The pure core: no Twisted, socket, clock or disk. Inputs and `now` go in, effects come out."""
