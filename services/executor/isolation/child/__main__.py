"""Starts a tool's process: `python -s .../child/__main__.py INTERPRETER SOCKET_FD [STACKS_FD]`.

INTERPRETER is that of the environment that the tool needs, or empty: see `importer.enter_environment`.

Run by path, never imported.  It loads this package and `common` under a private package name, so that a
tool finds nothing of the service on `sys.path`, and no module of ours can be mistaken for one of the tool's.
Everything in both is standard library only and runs under CPython 3.9 and later.
"""

import importlib
import os
import sys
import types

PACKAGE = "_fullsend"


def main() -> None:
    """Serve requests from the descriptors named on the command line until the executor is gone."""
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path[0] == here:  # as for any script
        del sys.path[0]
    package = types.ModuleType(PACKAGE)
    package.__path__ = [os.path.dirname(here)]
    sys.modules[PACKAGE] = package
    loop = importlib.import_module(PACKAGE + ".child.loop")
    loop.main(sys.argv[1], [int(text) for text in sys.argv[2:]])


# `multiprocessing` with the spawn method imports the main file again under another name.
if __name__ == "__main__":
    main()
