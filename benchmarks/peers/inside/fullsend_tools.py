"""The names of the executor's tools: each is a copy of `jobs` with that name."""

TOOLS = ("stamp", "large", "nap", "work", "hang", "note")
