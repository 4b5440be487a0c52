"""`python -m mergetomix`."""

from mergetomix.cli.main import main

main()
