"""Search by Optuna's samplers."""
