"""Keras callbacks that prune during `fit`."""
