"""Tasks of the LM Evaluation Harness as targets: its prompts, filters and metrics, our batches."""
