"""The kinds of model that can be fine-tuned, each in a folder behind the protocols of `family`."""
