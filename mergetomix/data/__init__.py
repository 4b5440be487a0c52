"""Files to examples: tables of rows, rows mapped to examples, labelled images, splits, leaks."""
