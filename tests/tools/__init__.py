"""Developer commands that tests run too."""
