"""From labels to weights: what every learner is, and the two that are served. Imports features and records."""
