"""Heads on frozen features: classifiers that are fitted in closed form or in seconds, beside zero-shot's."""
