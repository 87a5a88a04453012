"""`python -m segdist`."""

from segdist.cli import main

main()
