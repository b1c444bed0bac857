"""What a pool grants each of its processes."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Terms:
    """The same for every process of a pool; `directory` holds their temp directories."""

    environ: Mapping[str, str] = field(default_factory=dict)
    limit_bytes: int = 33_554_432
    log_bytes_per_second: int = 4_194_304
    max_runs: int = 1000
    max_rss_bytes: int | None = None
    grace_seconds: float = 0.25
    directory: Path = Path(tempfile.gettempdir())
    readable: tuple[Path, ...] = ()
