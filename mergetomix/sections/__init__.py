"""The sections of a recipe: one frozen pydantic model each, with text under every field."""
