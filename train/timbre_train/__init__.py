"""Training of the classifier shipped in models/default."""
