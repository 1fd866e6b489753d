// The style sheet of the needle page: light and dark, wide and narrow, nothing fetched from anywhere.
#pragma once

namespace moba::app {

inline constexpr const char* kPageStyle = R"css(
:root { color-scheme: light dark; --back: #fbfbf9; --card: #ffffff; --ink: #191c20; --soft: #5d6570; --line: #e3e4df;
  --full: #c2621b; --moba: #0c7c86; --model: #6a4fb3; }
@media (prefers-color-scheme: dark) { :root { --back: #121417; --card: #1a1d21; --ink: #eceef0; --soft: #9aa3ad;
  --line: #2d3238; --full: #f0995a; --moba: #46c2c6; --model: #b09af0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.5rem); line-height: 1.15; margin: 0 0 12px; letter-spacing: -0.02em; }
h2 { font-size: 1.15rem; margin: 44px 0 14px; }
h3 { font-size: 1rem; margin: 0 0 10px; }
p { margin: 0 0 12px; max-width: 68ch; }
.soft, .eyebrow { color: var(--soft); }
.eyebrow { font-size: .85rem; margin-bottom: 6px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px; margin: 26px 0 8px; }
.card, .tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 18px 20px; }
.tile b { display: block; font-size: 2rem; line-height: 1.1; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .9rem; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 14px; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit; fill: var(--ink); font-size: 13px; }
svg .tick, svg .axis { fill: var(--soft); }
svg .middle, svg .cell { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .cell { font-weight: 600; font-variant-numeric: tabular-nums; }
svg .on-dark { fill: #ffffff; }
svg .on-light { fill: #1b1b1b; }
svg.curve { max-width: 920px; margin: 0 auto; }
@media (max-width: 640px) { svg.curve text { font-size: 22px; } svg.curve .ratio { transform: translateY(10px); }
  svg circle { r: 6px; }
  svg polyline { stroke-width: 4; } }
svg .unread { fill: none; stroke: var(--line); }
svg .grid { stroke: var(--line); }
svg .gap { stroke: var(--soft); stroke-dasharray: 2 4; }
svg .ratio { font-weight: 700; }
svg .name { font-weight: 600; }
svg polyline { fill: none; stroke-width: 2.5; stroke-linejoin: round; stroke-linecap: round; }
.series-full polyline { stroke: var(--full); } .series-full circle, svg .series-full .name, .dot.series-full { fill: var(--full); background: var(--full); }
.series-moba polyline { stroke: var(--moba); } .series-moba circle, svg .series-moba .name, .dot.series-moba { fill: var(--moba); background: var(--moba); }
.series-model polyline { stroke: var(--model); } .series-model circle, svg .series-model .name, .dot.series-model { fill: var(--model); background: var(--model); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 8px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .88rem; }
th:first-child, td:first-child { text-align: left; }
td.wrap { white-space: normal; text-align: left; min-width: 260px; }
tr:last-child td { border-bottom: 0; }
details { margin-top: 14px; } summary { cursor: pointer; font-weight: 600; }
details > *:not(summary) { margin-top: 12px; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .88rem; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 0 0 14px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.legend { display: flex; align-items: center; gap: 10px; margin-top: 14px; font-size: .88rem; color: var(--soft); }
.legend i { flex: 0 1 180px; height: 10px; border-radius: 5px; }
)css";

}  // namespace moba::app
