"""What tools import as `shared`: the toolkit, and nothing else that has this name.

This folder is on the path of a tool's process, and so on that of the interpreters that it starts with
`multiprocessing`, joblib and the like.  There the toolkit behaves as if the tool were run by hand.
"""

import importlib.util
import os
import sys

_DEPTH = 7
_root = os.path.abspath(__file__)
for _ in range(_DEPTH):
    _root = os.path.dirname(_root)

_spec = importlib.util.spec_from_file_location("shared.toolkit", os.path.join(_root, "shared", "toolkit.py"))
assert _spec is not None
assert _spec.loader is not None
toolkit = importlib.util.module_from_spec(_spec)
sys.modules["shared.toolkit"] = toolkit
_spec.loader.exec_module(toolkit)

_ours = sys.modules.get("_fullsend")
if _ours is not None:
    toolkit._attach(_ours.reporter)
