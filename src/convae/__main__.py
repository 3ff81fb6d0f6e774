"""`python -m convae` is `convae`."""

from convae.cli import main

main()
