"""Model files: compressed `.keras` files and sparse tensors."""

from keras_pruner.storage.keras_file import save_compressed
from keras_pruner.storage.safetensors_file import load_sparse, save_sparse

__all__ = ["load_sparse", "save_compressed", "save_sparse"]
