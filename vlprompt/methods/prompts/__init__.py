"""Learnt prompts, of text, images or both."""
