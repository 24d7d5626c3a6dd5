"""A recipe and the zoo become a plan: every name looked up, every option validated."""
