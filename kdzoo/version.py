"""The version of kdzoo."""

__version__ = "0.2.0"
