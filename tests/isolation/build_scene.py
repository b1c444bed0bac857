"""Builds a package whose backend tries to leave its walls; prints what came of it as JSON.

`python build_scene.py`, as any user.
"""

import asyncio
import json
import os
import tempfile
from pathlib import Path

from tests.isolation.test_builds import source, tried_in
from tests.isolation.workshop import Workshop, find_uv


async def main(directory: Path) -> None:
    """Build it, with a secret and a victim of this user's beside the environment."""
    workshop = Workshop(directory)
    secret, victim = directory / "secret", directory / "victim"
    secret.write_text("secret")
    source(
        workshop,
        read=f"pathlib.Path({str(secret)!r}).read_text()",
        write=f"pathlib.Path({str(victim)!r}).write_text('x') and None",
        environ=f"pathlib.Path('/proc/{os.getpid()}/environ').read_text()",
        memory=f"open('/proc/{os.getpid()}/mem', 'rb').read(1)",
        mode=f"os.chmod({str(secret)!r}, 0o777)",
    )
    tried = await tried_in(workshop.environments(uv=find_uv()))
    del tried["env"]
    print(json.dumps(tried | {"was changed": secret.stat().st_mode & 0o777 == 0o777 or victim.exists()}))


with tempfile.TemporaryDirectory() as place:
    asyncio.run(main(Path(place)))
