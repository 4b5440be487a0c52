"""`python -m mergetomix`."""

from mergetomix.cli import main

main()
