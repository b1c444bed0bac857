"""What a tool depends on: its own environment, built once with uv and kept."""
