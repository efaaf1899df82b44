"""All that touches the user's network: the guard, the autograd graph, the scores."""
