"""Services of each kind, with real processes: started, stopped, ended at once, and needing each other."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crnode.cluster.document import ProbeSpec, ServiceSpec
from crnode.failover.controls import Place, WindowsService, control_of, drop_in, write_drop_ins
from crnode.failover.services import Services
from crnode.platform.cgroups import Group

ESCAPE = """
import os, sys, time
if os.fork() == 0:
    os.setsid()  # out of its group
    if os.fork() == 0:
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, f"test{os.getpid()}")


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_what_left_its_group_is_ended_with_its_service(place: Place, tmp_path: Path) -> None:
    group = place.group("probe")
    if group is None:
        pytest.skip("no control group can be made here")
    group.remove()
    script, escaped = tmp_path / "escape.py", tmp_path / "pid"
    script.write_text(ESCAPE)

    async def run(end: str) -> None:
        escaped.unlink(missing_ok=True)
        spec = ServiceSpec(name="web", command=(sys.executable, str(script), str(escaped)))
        control = control_of(spec, place)
        assert await control.start(5.0) == "" and control.ended() == ""
        await until(lambda: escaped.exists() and escaped.read_text())
        pid = int(escaped.read_text())
        if end == "stop":
            assert await control.stop(5.0)
        else:
            control.kill()
            await until(control.is_gone)
        assert not is_there(pid) and control.ended() != ""
        assert await control.stop(1.0)

    for end in ("stop", "kill"):
        asyncio.run(run(end))
    assert not list(group.folder.parent.glob(f"crnode.{place.tag}.web"))


def test_a_keeper_that_starts_ends_what_one_before_left(place: Place, tmp_path: Path) -> None:
    group = place.group("web")
    if group is None:
        pytest.skip("no control group can be made here")

    async def run() -> None:
        left = await asyncio.create_subprocess_exec("sleep", "600", preexec_fn=group.enter)
        services = Services([ServiceSpec(name="web", command=("sleep", "1"))], place, print)
        assert not services.are_gone()
        services.kill()
        assert await left.wait() == -9 and services.are_gone()

    asyncio.run(run())
    group.remove()


def test_a_service_ends_by_the_signal_that_it_takes_for_an_order(place: Place, tmp_path: Path) -> None:
    script = "trap '' TERM; trap 'echo int > said; exit 0' INT; while :; do sleep 0.05; done"
    spec = ServiceSpec(name="db", command=("sh", "-c", f"cd {tmp_path}; {script}"), stop_signal="INT",
    stop_s=5.0)

    async def run() -> float:
        control = control_of(spec, place)
        assert await control.start(5.0) == ""
        await asyncio.sleep(0.3)
        begun = time.monotonic()
        assert await control.stop(spec.stop_s)
        return time.monotonic() - begun

    assert asyncio.run(run()) < 2.0 and (tmp_path / "said").read_text() == "int\n"


def test_commands_start_stop_and_ask(place: Place, tmp_path: Path) -> None:
    pid, stopped = tmp_path / "pid", tmp_path / "stopped"
    spec = ServiceSpec(
        name="db",
        start=f"sleep 600 & echo $! > {pid}",
        stop=f"kill $(cat {pid}); touch {stopped}",
        status=f"kill -0 $(cat {pid})",
    )
    said: list[str] = []

    async def run() -> None:
        services = Services([spec], place, said.append)
        await services.start(lambda: True)
        assert services.failed() == [] and services.told() == {"db": "up"}
        os.kill(int(pid.read_text()), 9)
        await until(services.failed)
        assert await services.stop()
        await services.start(lambda: True)
        number = int(pid.read_text())
        stopped.unlink(missing_ok=True)
        assert await services.stop() and stopped.exists() and not is_there(number)
        await services.start(lambda: True)
        number = int(pid.read_text())
        services.kill()
        await until(lambda: not is_there(number))

    asyncio.run(run())
    broken = ServiceSpec(name="no", start="exit 7")

    async def fails() -> None:
        services = Services([broken], place, said.append)
        await services.start(lambda: True)
        assert [why for _, why in services.failed()] == ["it could not be started"]
        services.kill()

    asyncio.run(fails())
    assert any("'exit 7' ended with 7" in text for text in said)


def test_who_needs_another_one_is_not_blamed_and_starts_anew_with_it(place: Place, tmp_path: Path) -> None:
    order = tmp_path / "order"

    def spec(name: str, **more: Any) -> ServiceSpec:
        command = ("sh", "-c", f"echo {name} >> {order}; exec sleep 600")
        return ServiceSpec(name=name, command=command, **more)

    probe = ProbeSpec(kind="command", target=f"test ! -e {tmp_path}/down", interval_s=0.1, fall=1)

    async def run() -> None:
        specs = [spec("db", probe=probe), spec("web", probe=probe, needs=("db",)), spec("mail", probe=probe)]
        services = Services(specs, place, print)
        await services.start(lambda: True)
        await until(lambda: order.exists() and len(order.read_text().split()) == 3)
        assert sorted(order.read_text().split()) == ["db", "mail", "web"]
        (tmp_path / "down").touch()
        # As long as only web's own probe has failed, it is to blame; each asks when it likes.
        await until(lambda: [one.name for one, _ in services.failed()] == ["db", "mail"])
        (tmp_path / "down").unlink()
        assert await services.end("db")
        assert set(services.running) == {"mail"}
        await services.start(lambda: True)
        await until(lambda: len(order.read_text().split()) == 5)  # their shells write when they like
        assert order.read_text().split()[3:] == ["db", "web"]
        assert await services.stop()

    asyncio.run(run())


def test_a_service_that_is_said_to_be_another_one_is_ended(place: Place) -> None:
    async def run() -> None:
        services = Services([ServiceSpec(name="web", command=("sleep", "600"))], place, print)
        await services.start(lambda: True)
        control = services.running["web"].control
        services.configure([ServiceSpec(name="web", command=("sleep", "601"))])
        await until(control.is_gone)
        assert services.running == {}
        services.configure([])
        assert services.are_gone()

    asyncio.run(run())


SC = """#!/bin/sh
state="{0}/state"
echo "$@" >> "{0}/asked"
case $1 in
start) echo RUNNING > $state;;
stop) echo STOPPED > $state;;
query) echo "SERVICE_NAME: $2"; echo "  TYPE : 10  WIN32_OWN_PROCESS"; echo "  STATE : 4  $(cat $state)";;
esac
"""


def test_a_service_of_windows_is_asked_by_sc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be seen of it on Linux: which commands are given, and how their answers are read."""
    for name in ("sc", "taskkill"):
        script = tmp_path / name
        script.write_text(SC.format(tmp_path))
        script.chmod(0o755)
    (tmp_path / "state").write_text("STOPPED\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def run() -> None:
        service = WindowsService("W3SVC")
        assert await service.start(5.0) == "" and service.ended() == ""
        assert await service.stop(5.0) and service.ended() != "" and service.is_gone()
        service.kill()
        await until(lambda: "/F /FI SERVICES eq W3SVC" in (tmp_path / "asked").read_text())

    asyncio.run(run())
    assert (tmp_path / "asked").read_text().split("\n")[0] == "start W3SVC"


def test_drop_ins_are_written_for_these_units_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho $@ >> {told}\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    units = tmp_path / "units"
    assert write_drop_ins(["nginx.service"], "crnode-keeper.service", units) == ""
    text = (units / "nginx.service.d" / "50-crnode.conf").read_text()
    assert "ConditionPathExists=/run/crnode/active/nginx.service" in text
    assert "BindsTo=crnode-keeper.service" in text and "After=crnode-keeper.service" in text
    assert write_drop_ins(["nginx.service"], "crnode-keeper.service", units) == ""
    assert told.read_text() == "daemon-reload\n"  # once
    assert write_drop_ins([], "", units) == ""
    assert not list(units.glob("*.d/*")) and told.read_text() == "daemon-reload\ndaemon-reload\n"
    assert "BindsTo" not in drop_in("nginx.service", "")
    (tmp_path / "file").touch()
    assert "Not a directory" in write_drop_ins(["nginx.service"], "", tmp_path / "file")


def test_a_group_that_is_not_there_is_empty(tmp_path: Path) -> None:
    group = Group(tmp_path / "none")
    group.kill()
    group.remove()
    assert group.is_empty and group.processes() == [] and Group.of_unit("") is None


def test_a_start_that_fails_leaves_nothing_and_can_be_ended(place: Place, tmp_path: Path) -> None:
    pid, said = tmp_path / "pid", []
    spec = ServiceSpec(name="db", start=f"sleep 600 & echo $! > {pid}; exit 1")

    async def run() -> None:
        services = Services([spec], place, said.append)
        await services.start(lambda: True)
        assert [why for _, why in services.failed()] == ["it could not be started"]
        await until(services.are_gone)
        assert not is_there(int(pid.read_text()))
        assert await services.stop()

    asyncio.run(run())
    assert any("ended with 1" in text for text in said)


def test_what_is_said_while_services_start_counts_when_they_have(place: Place, tmp_path: Path) -> None:
    """Nothing that was started is forgotten, and nothing that is gone is waited for."""
    (tmp_path / "down").touch()
    probe = ProbeSpec(kind="command", target=f"test ! -e {tmp_path}/down", interval_s=0.1)
    db = ServiceSpec(name="db", command=("sleep", "600"), probe=probe)
    web = ServiceSpec(name="web", command=("sleep", "600"))

    async def run() -> None:
        services = Services([db, web], place, print)
        starting = asyncio.create_task(services.start(lambda: True))
        await asyncio.sleep(0.3)
        services.configure([db])  # web has not been started yet
        (tmp_path / "down").unlink()
        await starting
        assert set(services.running) == {"db"} and services.failed() == []
        services.configure([db, web])
        assert services.fresh == {"web"} and services.failed() == []  # nobody has tried it yet
        await services.start(lambda: True)
        assert set(services.running) == {"db", "web"}
        again = web.model_copy(update={"probe": probe})
        control = services.running["web"].control
        services.configure([db, again])  # it goes on, and is asked
        await until(lambda: services.told()["web"] == "up")
        assert services.running["web"].control is control
        assert await services.stop()

    asyncio.run(run())


def test_services_that_are_being_stopped_are_not_started_and_not_killed(place: Place, tmp_path: Path) -> None:
    async def run() -> None:
        services = Services([ServiceSpec(name="web", command=("sleep", "600"))], place, print)
        await services.start(lambda: True)
        first = services.running["web"].control
        more = ServiceSpec(name="db", command=("sleep", "600"))
        services.configure([*services.services, more])
        await services.start(lambda: False)  # another node is to serve: they end in good order
        assert set(services.running) == {"web"} and first.ended() == ""
        await services.start(lambda: False, lambda: True)  # the lease is over
        await until(services.are_gone)

    asyncio.run(run())


def test_what_is_said_while_services_stop_counts_when_they_have(place: Place) -> None:
    """Else a switch in which one is taken out ended the keeper before it released the lease."""
    slow = ("sh", "-c", "trap 'sleep 0.5; exit 0' TERM; while :; do sleep 0.1; done")
    db, web = (ServiceSpec(name=name, command=slow) for name in ("db", "web"))
    more = ServiceSpec(name="more", command=("sleep", "600"))

    async def run() -> None:
        services = Services([db, web], place, print)
        await services.start(lambda: True)
        await asyncio.sleep(0.2)
        stopping = asyncio.create_task(services.stop())
        await asyncio.sleep(0.1)
        services.configure([web, more])
        assert await stopping and services.are_gone()
        assert [spec.name for spec in services.services] == ["web", "more"]
        await services.start(lambda: True)
        assert set(services.running) == {"web", "more"}
        ending = asyncio.create_task(services.end("web"))
        await asyncio.sleep(0.1)
        services.configure([more])
        assert await ending and set(services.running) == {"more"}
        assert await services.end("web")  # is none any more
        assert await services.stop()

    asyncio.run(run())


def test_a_program_that_is_not_there_is_a_service_that_failed(place: Place, tmp_path: Path) -> None:
    said: list[str] = []

    async def run() -> None:
        names = {"a": {"unit": "none-such.service"}, "b": {"windows": "W3SVC"}, "c": {"command":
        ("/none/such",)}}
        specs = [ServiceSpec(name=name, start_s=2.0, **how) for name, how in names.items()]
        services = Services(specs, place, said.append)
        await services.start(lambda: True)
        assert [one.name for one, _ in services.failed()] == ["a", "b", "c"]
        assert await services.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        asyncio.run(run())
    assert len(said) == 3 and all("could not be started" in text for text in said)


def test_the_group_of_a_unit_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crnode.platform.cgroups.mount_point", lambda: tmp_path)
    for place in (
        "system.slice/nginx.service",
        "system.slice/system-postgresql.slice/postgresql@15-main.service",
        "system.slice/system-my\\x2dapp.slice/my-app@1.service",
        "shop.slice/shop-web.slice/web.service",
    ):
        (tmp_path / place).mkdir(parents=True)
        found = Group.find_unit(place.rpartition("/")[2])
        assert found is not None and found.folder == tmp_path / place
    assert Group.find_unit("none.service") is None
