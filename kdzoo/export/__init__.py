"""Export of the plain student: the formats are plugins, the verification is common to all of them."""
