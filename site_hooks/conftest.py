"""Examples of what needs griffe are tried where `make docs` has installed it."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("griffe") else ["doctests.py"]
