"""The zoo: plugins are found, loaded, checked and listed."""
