"""What runs in the subprocess: standard library only, CPython 3.9 and later, relative imports only."""
