"""The media types of names."""

import pytest

from services.executor.artifacts.keeper import media_type_of


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("metrics.csv", "text/csv"),
        ("plot.png", "image/png"),
        ("PLOT.PNG", "image/png"),
        ("a/b/result.json", "application/json"),
        ("results.tar", "application/x-tar"),
        ("results.tar.gz", "application/gzip"),
        ("events.csv.bz2", "application/x-bzip2"),
        ("error", "application/octet-stream"),
        ("", "application/octet-stream"),
        (".csv", "application/octet-stream"),
        ("data:text/html,x y", "application/octet-stream"),
        ("nothing.known", "application/octet-stream"),
    ],
)
def test_the_media_type_of_a_name(name: str, media_type: str) -> None:
    assert media_type_of(name) == media_type
