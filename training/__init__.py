"""Training of the starter weights: assets, generated pictures, losses, the training loop and its evaluation."""
