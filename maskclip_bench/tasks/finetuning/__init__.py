"""Training a classifier through a backbone: for `finetune` and the augmented linear probe."""
