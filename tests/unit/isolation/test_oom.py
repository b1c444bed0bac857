"""Deaths by the OOM killer, with files in place of the kernel's."""

from pathlib import Path

from services.executor.isolation.resource_limits import FRESH_SECONDS, MACHINE_COUNTER, OomKills, counter_file

SAMPLE = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"


class Kernel:
    """A count that a test moves."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "memory.oom_control"
        self.kills = 0
        self.kill(0)

    def kill(self, number: int = 1) -> None:
        """Count so many more."""
        self.kills += number
        self.file.write_text(SAMPLE.format(self.kills))


def test_a_kill_since_a_run_began_explains_its_death(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kernel.kill()
    kills = OomKills(kernel.file)
    before = kills.so_far(now=1.0)

    assert not kills.explain(before)
    kernel.kill()
    assert kills.explain(before)


def test_a_kill_explains_one_death_only(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kills = OomKills(kernel.file)
    before = kills.so_far(now=1.0)
    kernel.kill()

    assert [kills.explain(before), kills.explain(before)] == [True, False]


def test_two_kills_at_once_explain_two_deaths(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kills = OomKills(kernel.file)
    before = kills.so_far(now=1.0)
    kernel.kill(2)

    assert [kills.explain(before) for _ in range(3)] == [True, True, False]


def test_an_earlier_kill_that_is_explained_late_hides_no_later_one(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kills = OomKills(kernel.file)
    first_began = kills.so_far(now=1.0)
    kernel.kill()
    second_began = kills.so_far(now=2.0)

    assert kills.explain(first_began)
    kernel.kill()
    assert kills.explain(second_began)


def test_the_kernel_is_not_asked_for_every_run(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    kills = OomKills(kernel.file)
    kills.so_far(now=1.0)
    kernel.kill()

    assert kills.so_far(now=1.0 + FRESH_SECONDS / 2) == 0
    assert kills.so_far(now=1.0 + FRESH_SECONDS) == 1


def test_a_count_that_can_not_be_read_explains_nothing(tmp_path: Path) -> None:
    kills = OomKills(tmp_path / "missing")

    assert not kills.explain(kills.so_far(now=1.0))


# -- where the count is ---------------------------------------------------------------


def shown(directory: Path, groups: str, mounts: str) -> Path:
    """The file to read if /proc has this content."""
    (directory / "cgroup").write_text(groups)
    (directory / "mountinfo").write_text(mounts)
    return counter_file(directory / "cgroup", directory / "mountinfo")


def test_a_control_group_of_version_2_is_found(tmp_path: Path) -> None:
    events = tmp_path / "system.slice" / "fullsend.service" / "memory.events"
    events.parent.mkdir(parents=True)
    events.touch()

    assert events == shown(
        tmp_path,
        "0::/system.slice/fullsend.service\n",
        f"29 23 0:26 / {tmp_path} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
    )


def test_a_control_group_of_version_1_that_a_container_sees_from_inside_is_found(tmp_path: Path) -> None:
    control = tmp_path / "memory.oom_control"
    control.touch()

    assert control == shown(
        tmp_path,
        "5:devices:/docker/1234\n4:memory:/docker/1234\n0::/docker/1234\n",
        f"35 31 0:32 /docker/1234 {tmp_path} ro,relatime - cgroup cgroup rw,memory\n"
        f"36 31 0:33 /docker/1234 {tmp_path}/devices ro - cgroup cgroup rw,devices\n",
    )


def test_without_a_visible_control_group_it_is_the_count_of_the_machine(tmp_path: Path) -> None:
    elsewhere = f"29 23 0:26 /other {tmp_path} rw - cgroup2 cgroup2 rw\n"

    assert shown(tmp_path, "0::/mine\n", elsewhere) == MACHINE_COUNTER
    assert shown(tmp_path, "0::/\n", f"29 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n") == MACHINE_COUNTER
    assert counter_file(tmp_path / "missing", tmp_path / "missing") == MACHINE_COUNTER
