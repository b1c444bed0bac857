"""The settings for plans on Modal: environment > `.env` > defaults."""

from typing import Any, Final

from pydantic import AliasChoices, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.executor.config import ENV_FILE, Count, List, Seconds
from services.planner.backends.modal_options import MAX_TIMEOUT_SECONDS, ModalOptions
from shared.documents import mistakes
from shared.errors import SettingsError

DEFAULTS: Final = ModalOptions()


def _setting(default: Any, *variables: str, **bounds: Any) -> Any:
    """Describe a setting by its default and the variables that set it, of which the first counts most."""
    return Field(default, validation_alias=AliasChoices(*variables), **bounds)


class ModalSettings(BaseSettings):
    """What the user has set; `docs/operations.md` has the meanings, `ModalOptions` the members."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        env_file=ENV_FILE,
        env_ignore_empty=True,
        enable_decoding=False,
    )

    volume: str = _setting(
        DEFAULTS.volume,
        "MODAL_VOLUME", "BILANCIO_MODAL_VOLUME",
        pattern=r"\A[A-Za-z0-9._-]+\z", max_length=64,
    )  # fmt: skip
    timeout: float = _setting(
        DEFAULTS.timeout,
        "MODAL_TIMEOUT", "BILANCIO_CLOUD_TIMEOUT", "BILANCIO_MODAL_TIMEOUT",
        ge=1, le=MAX_TIMEOUT_SECONDS,
    )  # fmt: skip
    memory: Count = _setting(
        DEFAULTS.memory, "MODAL_MEMORY", "BILANCIO_CLOUD_MEMORY", "BILANCIO_MODAL_MEMORY"
    )
    cpu: float = _setting(DEFAULTS.cpu, "MODAL_CPU", gt=0)
    gpu: str = _setting(DEFAULTS.gpu, "MODAL_GPU")
    secrets: List[str] = _setting(DEFAULTS.secrets, "MODAL_SECRETS")
    max_parallel: Count | None = _setting(
        DEFAULTS.max_parallel,
        "MODAL_MAX_PARALLEL", "BILANCIO_CLOUD_MAX_PARALLEL", "BILANCIO_MODAL_MAX_PARALLEL",
    )  # fmt: skip
    slots: Count = _setting(DEFAULTS.slots, "MODAL_SLOTS")
    wait: Seconds = _setting(DEFAULTS.wait, "MODAL_WAIT")


def modal_options() -> ModalOptions:
    """Read the settings.

    Raises:
        SettingsError: one line for each mistake.
    """
    try:
        found = ModalSettings()
    except ValidationError as exc:
        lines = [f"{one.member}={one.value}: {one.problem}{_others(one.member)}" for one in mistakes(exc, ())]
        raise SettingsError("\n".join(lines)) from None
    return ModalOptions(**found.model_dump())


def _others(variable: str) -> str:
    """The other variables that may have set the same, for the end of a message."""
    for field in ModalSettings.model_fields.values():
        assert isinstance(field.validation_alias, AliasChoices), "each is made by `_setting`"
        first, *others = map(str, field.validation_alias.choices)
        if first == variable and others:
            return f" (set by this variable or by {' or '.join(others)})"
    return ""
