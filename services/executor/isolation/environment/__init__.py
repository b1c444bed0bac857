"""A tool's own dependencies: virtual environments that are built once with uv and kept."""
