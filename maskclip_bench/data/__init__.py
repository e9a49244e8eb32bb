"""Data: image-text pairs for pretraining, and readers of labelled sets for evaluation."""
