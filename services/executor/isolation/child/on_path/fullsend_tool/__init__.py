"""The tools that are called like something else, as `fullsend_tool.NAME`.

Interpreters that such a tool starts import it by this name, to find the functions that they are to call.
The tools' folder is the last on their path, so it is the first to be searched here.
"""

import sys

__path__ = sys.path[::-1]
