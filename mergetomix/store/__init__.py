"""What was done, kept by its content."""
