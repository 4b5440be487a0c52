"""The kinds of model that can be fine-tuned: each in a folder of its own, behind the protocols of `family`."""
