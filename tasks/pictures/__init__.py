"""All that needs matplotlib: learning curves, rollouts, films, the two pictures that explain the method, notebooks."""
