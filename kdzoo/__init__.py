"""kdzoo: a plugin-based zoo of knowledge-distillation algorithms."""

__version__ = "0.2.0"
