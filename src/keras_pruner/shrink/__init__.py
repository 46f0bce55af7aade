"""Channels, heads and units that are really removed: a smaller model of ordinary layers."""
