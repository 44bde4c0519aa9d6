"""Mean intersection over union, accumulated in a confusion matrix."""
