"""Pruning at once, without training; with a few unlabelled samples, refitted."""
