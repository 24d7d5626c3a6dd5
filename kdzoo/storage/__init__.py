"""Everything that kdzoo writes: atomic files, checkpoints, the store, run folders and their locks."""
