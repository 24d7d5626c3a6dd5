"""kdzoo: a plugin-based zoo of knowledge-distillation algorithms."""

__version__ = "0.1.0"
