"""Data sets in their splits, and the batches made of them."""
