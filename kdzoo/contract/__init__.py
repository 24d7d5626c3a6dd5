"""The contract: everything that the author of a plugin meets, collected in ``kdzoo.api``."""
