"""The names of our tools: each is a copy of `jobs` under that name."""

TOOLS = ("stamp", "large", "nap", "work", "hang", "note")
