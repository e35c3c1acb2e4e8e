"""The page of the web view: the picture, and under it the statistics; one document without outside parts."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>duskfuse live</title>
<style nonce="NONCE">
:root { color-scheme: dark; }
body { margin: 0; background: #14161a; color: #d8dce3; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
img { display: block; width: 100%; max-height: 78vh; object-fit: contain; background: #000; border-radius: 6px; }
#notice { min-height: 1.5em; margin: .6rem 0; font-weight: 600; color: #ff9b85; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .8rem; margin: 0; }
dl div { padding: .5rem .8rem; background: #1e2228; border-radius: 6px; }
dt { font-size: .8rem; color: #98a1b0; }
dd { margin: 0; font-variant-numeric: tabular-nums; font-size: 1.15rem; }
</style>
</head>
<body>
<main>
<img id="picture" src="/stream.mjpg" alt="The fused picture, live">
<p id="notice" role="status"></p>
<dl id="figures"></dl>
</main>
<script nonce="NONCE">
"use strict";
const notice = document.getElementById("notice"), figures = document.getElementById("figures");
const picture = document.getElementById("picture");
const sum = (counts) => Object.values(counts).reduce((all, one) => all + one, 0);
const ms = (times) => times ? times.p50.toFixed(1) + " / " + times.p99.toFixed(1) + " ms" : "–";
const silent = { ir: "The infrared camera is silent: this is the visible picture alone.",
                 vis: "The visible camera is silent: this is the infrared picture alone." };
function show(state) {
  notice.textContent = silent[state.missing] || "";
  const rows = {
    "pictures per second": state.fps_now.toFixed(1), "pictures": state.frames, "pairs": state.paired,
    "alone": sum(state.alone), "without a partner": sum(state.unpaired), "dropped as late": sum(state.dropped),
    "skew, median / 99 %": ms(state.skew_ms), "age, median / 99 %": ms(state.latency_ms),
    "network, median / 99 %": ms(state.stages_ms.fuse),
    "memory": state.memory_mb === null ? "–" : state.memory_mb.toFixed(0) + " MB",
  };
  figures.replaceChildren(...Object.entries(rows).map(([name, value]) => {
    const row = document.createElement("div"), term = document.createElement("dt"), data = document.createElement("dd");
    term.textContent = name; data.textContent = value; row.append(term, data);
    return row;
  }));
}
async function refresh() {
  try {
    const answer = await fetch("/stats.json", { cache: "no-store" });
    if (!answer.ok) throw new Error();
    show(await answer.json());
  } catch (error) {
    notice.textContent = "The program does not answer.";
  }
  setTimeout(refresh, 1000);
}
picture.addEventListener("error", () => setTimeout(() => { picture.src = "/stream.mjpg?" + Date.now(); }, 2000));
refresh();
</script>
</body>
</html>
"""
"""``NONCE`` stands where the nonce of the Content-Security-Policy belongs."""
