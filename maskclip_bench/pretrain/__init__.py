"""Pretraining: recipes, methods, the trainer, checkpoints, export."""
