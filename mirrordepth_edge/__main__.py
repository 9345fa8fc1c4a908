"""`python -m mirrordepth_edge` is `mde`."""

from mirrordepth_edge.cli import main

main()
