"""For authors of algorithms: the conformance suite, tiny pieces, scaffold and card."""
