"""Recipes: read, validated, written and compared, without torch and without plugins."""
