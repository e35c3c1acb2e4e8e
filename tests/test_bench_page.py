"""The page that compares devices: what it warns of, what it says, and that a browser shows it without complaint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from duskfuse.data.errors import InputError
from duskfuse.export.bench_page import bench_page
from duskfuse.export.device_runs import DeviceRun, incomparable, read_document
from duskfuse.export.runtime.timings import Timing

EVIL = "<script>window.harmed = 1</script>"


def result(milliseconds: float = 2.0, **changes: Any) -> dict[str, Any]:
    times = [milliseconds * (1 + 0.001 * (place % 7)) for place in range(120)]
    timing = Timing.of(times).to_json()
    entry = {
        "model": "edge-fp16.onnx",
        "sha256": "a" * 64,
        "precision": "fp16",
        "backend": "tensorrt",
        "size": "640x480",
        "transfers": "included",
        "flags": {"cuda_graph": True},
        "seconds": 1.0,
        "network": timing,
        "whole": timing,
        "steps": {},
        "fps": 1000 / milliseconds,
        "energy_mj": {"VDD_IN": {"per_picture": 20.0, "above_idle": 12.0}},
        "seen": {"gpu_mhz": {"mean": 900, "lowest": 612, "highest": 918, "last": 612}},
        "warnings": [],
        "times_ms": {"network": times, "whole": times},
        "trtexec": None,
    }
    return {**entry, **changes}


def run(
    name: str, *results: dict[str, Any], mode: str = "25W", module: str = "Module A", locked: bool = True
) -> DeviceRun:
    device = {
        "module": module,
        "power_mode": {"name": mode, "number": 1},
        "gpu_clock_locked": locked,
        "tensorrt": "10.3",
    }
    document = {
        "format": "duskfuse device benchmark",
        "version": 1,
        "made": "2026-01-01T00:00:00Z",
        "host": name,
        "device": device,
        "settings": {"seconds": 1.0, "threads": None},
        "results": list(results),
        "failures": [{"model": "broken.onnx", "reason": "damaged"}],
    }
    return read_document(json.loads(json.dumps(document)), name)


def test_equal_runs_are_comparable() -> None:
    assert incomparable([run("one", result()), run("two", result(3.0))]) == []
    assert incomparable([run("one", result()), run("other", result(), mode="MAXN", module="Module B")]) == []


@pytest.mark.parametrize(
    ("other", "warning"),
    [
        (run("two", result(size="320x240")), "The sizes differ: 320x240; 640x480."),
        (run("two", result(transfers="excluded")), "What was timed differs"),
        (run("two", result(flags={"cuda_graph": False})), "no CUDA graph"),
        (run("two", result(energy_mj={"VDD_CPU_CV": {"per_picture": 1.0, "above_idle": None}})), "parts only"),
        (run("two", result(sha256="b" * 64)), "edge-fp16.onnx is not the same file everywhere."),
        (run("two", result(), mode="15W"), "Module A ran with different power modes: 15W, 25W."),
        (run("two", result(), locked=False), "The GPU's clock was not locked on two."),
    ],
)
def test_what_makes_runs_incomparable(other: DeviceRun, warning: str) -> None:
    found = incomparable([run("one", result()), other])
    assert len(found) == 1
    assert warning in found[0]


def test_the_page_holds_every_number_and_reason() -> None:
    parts = {"VDD_GPU_SOC": {"per_picture": 7.5, "above_idle": None}}
    runs = [
        run("one", result(5.0, warnings=["the times vary by 9.0%"])),
        run("two", result(2.0, backend="trtexec", whole=None, fps=None, energy_mj=parts), mode="15W"),
    ]
    page = bench_page(runs).html()
    for text in ("edge-fp16.onnx", "25W (1)", "20.0 mJ", "VDD_GPU_SOC", "7.5", "the times vary by 9.0%", "612 to 918"):
        assert text in page, text
    assert "broken.onnx on one gave no numbers: damaged" in page
    assert page.index("Before you compare") < page.index("Time per picture")
    assert page.index("two, 15W") < page.index("one, 25W"), "the fastest first"
    with pytest.raises(InputError, match="no run holds a number"):
        bench_page([run("empty")])


def test_numbers_that_are_none_are_refused() -> None:
    broken = result()
    broken["network"]["p99"] = None
    with pytest.raises(InputError, match="is damaged"):
        run("one", broken)


def test_a_browser_shows_sorts_and_runs_nothing_foreign(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    results = [result(2.0), result(1.0, model=EVIL, precision="int8"), result(8.0, model="edge-fp32.onnx")]
    bench_page([run("one", *results), run(EVIL, result(4.0), mode=EVIL)]).write(tmp_path / "page.html")
    complaints: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for width in (390, 1280):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto((tmp_path / "page.html").as_uri())
            page.wait_for_selector("html[data-ready]")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{width} wide"
            medians = "[...document.querySelectorAll('.times tbody tr')].map(row => Number(row.cells[4].textContent))"
            assert page.evaluate(medians) == sorted(page.evaluate(medians))
            page.get_by_role("button", name="per s").click()
            assert page.evaluate(medians) == sorted(page.evaluate(medians)), "the fastest first again"
            page.get_by_role("button", name="per s").click()
            assert page.evaluate(medians) == sorted(page.evaluate(medians), reverse=True)
            assert page.evaluate("window.harmed") is None
            page.close()
        browser.close()
    assert not complaints
