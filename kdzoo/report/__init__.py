"""A run folder becomes report.html, a model card and tables."""
