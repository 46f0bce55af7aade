"""The command line `keras-pruner`, and its demo."""
