"""Learning from the test image itself."""
