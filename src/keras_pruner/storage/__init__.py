"""Model files: compressed `.keras` files and sparse tensors."""
