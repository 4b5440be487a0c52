"""Who does the work: pieces of work as values, and the executors that carry them out."""
