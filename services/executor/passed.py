"""What every tool sees of the environment."""

from collections.abc import Mapping

PASSED_TO_EVERY_TOOL = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that no program can do without and that hold no secret."""


def passed_to_every_tool(variables: Mapping[str, str]) -> dict[str, str]:
    """What each tool sees of the environment, whether or not it asks for more."""
    return {name: variables[name] for name in PASSED_TO_EVERY_TOOL if name in variables}
