"""One number of the gains on many targets."""
