"""What scores a model: a kind of target in each file, its section beside its scorer."""
