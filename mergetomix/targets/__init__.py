"""From a model to scores: a kind of target in each file, its section beside its scorer."""
