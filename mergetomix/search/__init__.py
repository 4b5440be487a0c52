"""Which mixture to try next: `ask` and `tell`."""
