"""Which mixtures there are, and which rows of the data a mixture takes."""
