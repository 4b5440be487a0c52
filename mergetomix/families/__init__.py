"""Model families: everything that differs between kinds of model lies behind this seam."""
