"""What the executor and the processes below it both import: standard library only, CPython 3.9 and later."""
