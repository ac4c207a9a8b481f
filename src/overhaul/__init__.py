"""Overhaul: make a PyTorch model smaller, faster, more general, and prove it."""
