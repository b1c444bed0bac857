"""`fullsend modal`, and what runs in Modal's containers."""
