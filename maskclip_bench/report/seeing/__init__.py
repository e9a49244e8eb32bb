"""What a model sees: pictures of patch features beside numbers, and what it retrieves.

`measures` is numpy and scikit-learn alone; `patches` and `retrieval` run models and need torch.
"""
