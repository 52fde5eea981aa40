"""The verbs of guests and snapshots as operations: steps that can be done, probed and undone."""
