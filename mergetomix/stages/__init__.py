"""The method: experts, search, checks, final model."""
