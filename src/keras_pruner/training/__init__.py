"""Pruning while a model trains: the pruner decides, the optimizer applies."""
