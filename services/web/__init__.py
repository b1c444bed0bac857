"""The web page: what runs, why it failed, and what to do about it."""
