"""Image-text pairs for pretraining: where they come from, and how batches are made of them."""
