"""Trackers: what a run does, told to TensorBoard, Weights & Biases, MLflow or Trackio."""
