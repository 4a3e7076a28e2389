"""Experiments on structured outputs, and what they share: settings, training, and the comparison over seeds."""
