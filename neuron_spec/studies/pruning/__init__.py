"""How small can a static subnetwork be? Importance by gradient, pruning step by step, votes of several models."""
