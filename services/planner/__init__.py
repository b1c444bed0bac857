"""Above the executor: one manifest becomes many runs, and their raw artifacts become findings."""
