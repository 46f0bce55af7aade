"""What the recipes share: data, training, stored results. The commands are in `recipes/`."""
