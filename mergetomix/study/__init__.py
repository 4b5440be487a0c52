"""The method under test: every mixture fine-tuned for real, and other ways to choose beside it."""
