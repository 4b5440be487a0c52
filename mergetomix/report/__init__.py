"""What a person looks at after a run: `result.json`, `report.md`, the final model."""
