"""The embedded default: its datasets, emoji and glyphs, and the weights of `vlprompt-tiny`."""
