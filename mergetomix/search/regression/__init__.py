"""Search by regression on the values of the mixtures that were tried."""
