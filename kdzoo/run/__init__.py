"""A plan becomes a run folder: stages, delivery, and what they are keyed by."""
