"""Starts the executor's side of a tool process: `python -I -S child.py SOCKET_FD [STACKS_FD]`.

Run by path, never imported: it loads the modules in `inside/` under a private
package name, so that a tool finds nothing of the service on `sys.path` and no
module of ours can be mistaken for one of the tool's.  Everything in `inside/`
is standard library only and runs under CPython 3.9 and later.
"""

import os
import sys
import types

PACKAGE = "_fullsend"


def main() -> None:
    """Serve requests from the descriptors named on the command line until the other side is gone."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside")]
    sys.modules[PACKAGE] = package
    loop = __import__(PACKAGE + ".loop").loop
    loop.main([int(text) for text in sys.argv[1:]])


# `multiprocessing` with the spawn method imports the main file again under another name.
if __name__ == "__main__":
    main()
