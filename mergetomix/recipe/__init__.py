"""The recipe as a file: all sections together, its YAML, and its errors."""
