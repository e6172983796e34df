"""What every other room uses: files, settings, registries, checks. It knows nothing of CLIP."""
