"""kdzoo from Python: recipes, runs and studies as objects."""
