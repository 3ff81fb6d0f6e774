"""Run the command `convae` as `python -m convae`."""

from convae.cli import main

main()
