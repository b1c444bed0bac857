"""A pool with a tool that hangs and has started others, at each level.

Run by path as some user; prints a JSON object.
"""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Level, TimedOut
from tests.isolation.bench import bench

HANGING = """
    import os, signal, subprocess, sys, time
    def waits_here():
        time.sleep(1000)
    def run():
        code = "import os, signal, time; signal.signal(15, signal.SIG_IGN);"
        code += "print(os.getpid(), flush=True); time.sleep(1000)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        print(os.getpid(), flush=True)
        waits_here()
"""


async def main() -> dict[str, Any]:
    """Its stacks, and the processes that it had."""
    with tempfile.TemporaryDirectory() as folder:
        async with bench(Path(folder)) as own:
            tool, stacks = own.tool(HANGING), []
            for level in Level:
                answer = await own.run(tool, level=level, timeout_seconds=3.0)
                assert isinstance(answer, TimedOut), answer
                stacks.append(answer.exit.stacks)
            return {"stacks": stacks, "pids": list(map(int, own.lines()))}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
