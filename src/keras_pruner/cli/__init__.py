"""The command line: `keras-pruner`."""
