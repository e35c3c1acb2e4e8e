"""Genuine lines of tegrastats are read to the last number; anything else says nothing and does no harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duskfuse.export.runtime.tegrastats import TegraSample, Unit, parse_line

# jetson_stats, test_06_tegra_parse.py (cores and engines left out there)
AGX_ORIN_JETPACK_7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,...] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] "
    "NVENC0 off ... cpu@52.968C/52.968C soc2@48.406C/48.406C gpu@47.625C/47.625C VDD_GPU_SOC 5139mW/5139mW/5139mW "
    "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
# catid.io, "AI on Jetson Orin", 2023
AGX_ORIN_JETPACK_5 = (
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,0%@729,0%@729,0%@729,"
    "0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 VIC_FREQ "
    "729 APE 174 CV0@-256C CPU@42.593C Tboard@32C SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C "
    "tj@42.593C SOC1@40.468C CV2@-256C VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW NC "
    "0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
# martinkersner/gtop, issue 7 (cores and sensors left out there)
XAVIER = (
    "RAM 14700/15692MB (lfb 3x2MB) SWAP 898/8192MB (cached 23MB) CPU [0%@1190,...] EMC_FREQ 0% GR3D_FREQ 0% "
    "AO@30C GPU@30.5C ... PMIC@100C GPU 463/463 CPU 618/618 SOC 2936/2936 CV 0/0 VDDRQ 309/309 SYS5V 3306/3306"
)
ORIN_NANO = "RAM 620/7619MB (lfb 1100x4MB) GR3D_FREQ 37% CPU@39.5C gpu@42.25C tj@43.0C VDD_IN 5520mW/5400mW"
# a recorded Orin Nano Super with JetPack 7.2.1
ORIN_NANO_SUPER = (
    "09-19-2026 13:33:03 RAM 2845/7486MB (lfb 33x4MB) CPU [1%@729,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 3%@665 "
    "GR3D_FREQ 0%@[305] NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off APE 200 cpu@45.375C/45.812C "
    "soc2@44.687C/44.843C soc0@46.25C/46.25C gpu@46.562C/46.843C tj@46.562C/46.843C soc1@46.281C/46.281C VDD_IN "
    "3462mW/3522mW/3582mW VDD_CPU_GPU_CV 442mW/483mW/523mW VDD_SOC 1127mW/1127mW/1127mW"
)
THOR = "RAM 9000/125772MB (lfb 2x4MB) GR3D_FREQ @[314,314,314] cpu@40C"


def sample(line: str) -> TegraSample:
    found = parse_line(line)
    assert found is not None
    return found


def test_agx_orin_of_jetpack_7_with_two_clocks_and_three_values_per_rail() -> None:
    found = sample(AGX_ORIN_JETPACK_7)
    assert found.time == "07-25-2026 09:08:28"
    assert found.ram_mb == (20642, 62817)
    assert found.swap_mb is None
    assert found.cpus == (Unit(23, (2201,)),)
    assert found.memory == Unit(3, (3199,))
    assert found.gpu == Unit(12, (1300, 1300))
    assert found.temperatures_c == {"cpu": 52.968, "soc2": 48.406, "gpu": 47.625}
    assert found.power_mw == {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500}


def test_agx_orin_of_jetpack_5_with_sensors_that_are_off_and_channels_that_are_not_connected() -> None:
    found = sample(AGX_ORIN_JETPACK_5)
    assert found.time == "04-24-2023 00:01:24"
    assert found.swap_mb == (0, 31398)
    assert found.cpus == (Unit(0, (729,)),) * 12
    assert found.gpu == Unit(0, (0,))
    assert found.sensors_off == ("CV0", "CV1", "GPU", "CV2")
    assert found.temperatures_c["Tboard"] == 32
    assert found.temperatures_c["tj"] == 42.593
    assert "GPU" not in found.temperatures_c
    assert found.power_mw == {"VDD_GPU_SOC": 2399, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 4032, "VDDQ_VDD2_1V8AO": 301}


def test_xavier_without_units_and_with_rails_named_as_sensors_and_cores_are() -> None:
    found = sample(XAVIER)
    assert found.time is None
    assert (found.ram_mb, found.swap_mb) == ((14700, 15692), (898, 8192))
    assert found.cpus == (Unit(0, (1190,)),)
    assert found.memory == found.gpu == Unit(0, ())
    assert found.temperatures_c == {"AO": 30, "GPU": 30.5, "PMIC": 100}
    assert found.power_mw == {"GPU": 463, "CPU": 618, "SOC": 2936, "CV": 0, "VDDRQ": 309, "SYS5V": 3306}


def test_orin_nano_and_its_super_kit() -> None:
    found = sample(ORIN_NANO)
    assert (found.ram_mb, found.gpu, found.cpus) == ((620, 7619), Unit(37), ())
    assert found.temperatures_c == {"CPU": 39.5, "gpu": 42.25, "tj": 43}
    assert found.power_mw == {"VDD_IN": 5520}
    found = sample(ORIN_NANO_SUPER)
    assert (found.gpu, found.memory) == (Unit(0, (305,)), Unit(3, (665,)))
    assert len(found.cpus) == 6
    assert found.power_mw == {"VDD_IN": 3462, "VDD_CPU_GPU_CV": 442, "VDD_SOC": 1127}


def test_thor_gives_clocks_and_no_load() -> None:
    assert sample(THOR).gpu == Unit(None, (314, 314, 314))


def test_the_oldest_form_has_one_clock_for_all_cores() -> None:
    assert sample("RAM 1/2MB cpu [1%,off,3%]@345 EMC 4%@1600 GR3D 5%@998").cpus == (
        Unit(1, (345,)),
        None,
        Unit(3, (345,)),
    )


@pytest.mark.parametrize(
    "line", ["", "tegrastats: command not found", "Error: NVML shared library not found", "[sudo]"]
)
def test_other_lines_are_none(line: str) -> None:
    assert parse_line(line) is None


@given(
    st.sampled_from([AGX_ORIN_JETPACK_7, AGX_ORIN_JETPACK_5, XAVIER, ORIN_NANO_SUPER, THOR]),
    st.integers(0, 600),
    st.integers(0, 600),
    st.text(max_size=20),
)
def test_torn_and_mixed_lines_do_no_harm(line: str, start: int, end: int, other: str) -> None:
    """A program that is ended, or two that write at once, leave such lines."""
    parse_line(line[:start] + other + line[end:])
