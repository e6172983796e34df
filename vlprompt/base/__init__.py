"""What every room stands on: files, settings, names to things, checks. It knows nothing of CLIP."""
