"""From a model to scores: a kind of target in each file, its section of the recipe beside its scorer."""
