"""What a machine says of itself: on a Jetson as recorded, and on any other machine with a reason for every gap."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from duskfuse.export.runtime.device_record import (
    Clock,
    PowerMode,
    device_record,
    parse_clocks,
    parse_l4t,
    parse_power_mode,
    parse_power_modes,
)
from duskfuse.export.runtime.device_watch import DeviceWatch

RECORDINGS = Path(__file__).parent / "recordings"
NANO = RECORDINGS / "orin_nano_super"
MODULE = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def jetson_programs(folder: Path) -> None:
    """NVIDIA's programs, which print what they printed on an Orin Nano Super."""
    folder.mkdir(exist_ok=True)
    program(folder, "nvpmodel", f'test "$1" = -q && cat {NANO}/nvpmodel.txt')
    program(folder, "jetson_clocks", f'test "$1" = --show && cat {NANO}/jetson_clocks.txt')
    program(
        folder,
        "tegrastats",
        f'while :; do while read -r line; do echo "$line"; sleep 0.05; done <{NANO}/tegrastats.txt; done',
    )
    program(folder, "dpkg-query", 'test "$4" = nvidia-jetpack && printf 7.2.1-b49')


def jetson_files(root: Path) -> None:
    (root / "etc").mkdir(parents=True)
    (root / "proc" / "device-tree").mkdir(parents=True)
    for name in ("nv_tegra_release", "nvpmodel.conf"):
        (root / "etc" / name).write_text((NANO / name).read_text(encoding="utf-8"), encoding="utf-8")
    (root / "proc" / "device-tree" / "model").write_text(MODULE + "\0", encoding="utf-8")


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n", encoding="utf-8")


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until programs beside the test have done their part."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it has not happened within 20 seconds"
        time.sleep(0.02)


def test_a_jetson_is_known_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jetson_files(tmp_path / "root")
    jetson_programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    record = device_record(tmp_path / "root")
    assert (record.module, record.l4t, record.jetpack) == (MODULE, "39.2.1", "7.2.1-b49")
    assert record.power_mode == PowerMode("25W", 1)
    assert record.power_modes == [PowerMode("15W", 0), PowerMode("25W", 1), PowerMode("MAXN_SUPER", 2)]
    assert record.clocks is not None
    assert record.clocks["GPU"] == Clock(306, 918, 306)
    assert record.clocks["cpu0"] == Clock(729.6, 1344, 960)
    assert record.gpu_clock_locked is False
    assert not {"module", "l4t", "jetpack", "power_mode", "clocks"} & set(record.missing)


def test_another_machine_gives_reasons(tmp_path: Path) -> None:
    record = device_record(tmp_path)
    data = json.loads(json.dumps(record.to_json()))
    for name in ("module", "l4t", "jetpack", "power_mode", "power_modes", "clocks", "gpu_clock_locked", "governor"):
        assert data[name] is None
        assert data["missing"][name]
    assert data["cores"] >= 1
    assert data["versions"]["numpy"]


def test_programs_that_fail_leave_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jetson_files(tmp_path / "root")
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "nvpmodel", "echo 'Error: root needed' >&2; exit 1")
    program(tmp_path / "bin", "sudo", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    record = device_record(tmp_path / "root")
    assert record.power_mode is None
    assert record.missing["power_mode"] == "nvpmodel -q failed: it may need root"
    assert record.missing["clocks"] == "jetson_clocks is not on this machine"


def test_the_forms_of_other_boards() -> None:
    assert parse_l4t("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64") == "36.4.3"
    assert parse_l4t("something else") is None
    assert parse_power_mode("NVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n2\n") == PowerMode(
        "MODE_15W_6CORE", 2
    )
    assert parse_power_mode("NV Power Mode: MAXN") == PowerMode("MAXN")
    assert parse_power_mode("") is None
    conf = "# < POWER_MODEL ID=9 NAME=OLD >\n< POWER_MODEL ID=1 NAME=5W >\nGPU MAX_FREQ 640000000\n"
    conf += "< POWER_MODEL NAME=MAXN ID=3 >"
    assert parse_power_modes(conf) == [PowerMode("5W", 1), PowerMode("MAXN", 3)]
    clocks = parse_clocks((RECORDINGS / "agx_orin_jetson_clocks.txt").read_text(encoding="utf-8"))
    assert clocks["GPU"] == Clock(306, 1300.5, 306)
    assert clocks["EMC"].highest == 3199
    assert clocks["cpu10"] == Clock(729.6, 2201.6, 1113.6)
    assert not clocks["GPU"].locked
    assert parse_clocks("GPU MinFreq=614400000 MaxFreq=614400000 CurrentFreq=614400000")["GPU"].locked


def test_a_watch_reads_tegrastats_while_something_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jetson_programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with DeviceWatch(tmp_path) as watch:
        started = time.monotonic()
        wait_for(lambda: watch.between(started, time.monotonic()).samples >= 5)
        seen = watch.between(started, time.monotonic())
    assert seen.samples >= 5
    assert seen.power_mw is not None
    assert 3462 <= seen.power_mw["VDD_IN"].mean <= 3582
    assert seen.power_mw["VDD_SOC"].highest == 1127
    assert seen.temperatures_c is not None
    assert seen.temperatures_c["tj"].highest == 46.843
    assert seen.memory_mhz is not None
    assert seen.memory_mhz.mean == 665
    assert seen.gpu_mhz is None, "an idle GPU's clock says nothing"
    assert not seen.throttling
    json.dumps(seen.to_json())


def test_a_watch_ends_its_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "tegrastats", f"echo $$ >{tmp_path}/pid; exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with DeviceWatch(tmp_path) as watch:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        seen = watch.between(0, time.monotonic())
    assert seen.missing["power_mw"] == "tegrastats printed nothing in time"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_throttling_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that falls under load, a sensor near its limit, a counter that goes up."""
    (tmp_path / "bin").mkdir()
    lines = [f"RAM 1/2MB GR3D_FREQ {load}%@[{mhz}] tj@{heat}C" for load, mhz, heat in ((99, 1020, 80), (99, 612, 96))]
    script = f"echo '{lines[0]}'; sleep 0.2; echo '{lines[1]}'; exec sleep 60"
    program(tmp_path / "bin", "tegrastats", script)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    write(zone / "type", "tj-thermal")
    write(zone / "temp", 80000)
    write(zone / "trip_point_0_type", "active")
    write(zone / "trip_point_0_temp", 50000)
    write(zone / "trip_point_1_type", "passive")
    write(zone / "trip_point_1_temp", 99000)
    counter = tmp_path / "sys/class/hwmon/hwmon1/oc1_event_cnt"
    write(counter, 0)
    started = time.monotonic()
    with DeviceWatch(tmp_path, every_s=0.1) as watch:
        wait_for(lambda: watch.between(started, time.monotonic()).samples >= 2)
        write(counter, 3)
        seen = watch.between(started, time.monotonic())
    assert seen.limits_c == {"tj": 99}
    assert seen.throttling == [
        "the GPU's clock fell from 1020 to 612 MHz under load",
        "tj reached 96.0 °C; the kernel slows the machine from 99.0 °C",
        "1 of the kernel's counters of throttling went up",
    ]


def test_the_kernel_alone_gives_clocks_and_temperatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for core, khz in enumerate((2000000, 1500000)):
        write(tmp_path / f"sys/devices/system/cpu/cpufreq/policy{core}/scaling_cur_freq", khz)
        write(tmp_path / f"sys/devices/system/cpu/cpufreq/policy{core}/scaling_governor", "schedutil")
    write(tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq", 918000000)
    write(tmp_path / "sys/class/thermal/thermal_zone0/type", "x86_pkg_temp")
    write(tmp_path / "sys/class/thermal/thermal_zone0/temp", 55000)
    with DeviceWatch(tmp_path) as watch:
        seen = watch.between(0, time.monotonic())
    assert seen.cpu_mhz is not None
    assert seen.gpu_mhz is not None
    assert seen.temperatures_c is not None
    assert (seen.cpu_mhz.mean, seen.gpu_mhz.mean) == (2000, 918)
    assert seen.temperatures_c["x86_pkg_temp"].last == 55
    assert seen.missing == {"power_mw": "there is no tegrastats on this machine"}
    assert device_record(tmp_path).governor == "schedutil"
