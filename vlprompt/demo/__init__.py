"""The embedded default: its datasets, emoji, glyphs and shapes, and the weights of `vlprompt-tiny`."""
