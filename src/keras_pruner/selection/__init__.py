"""Exact top-k selection: within one weight, and across many."""
