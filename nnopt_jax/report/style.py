"""The look of the report, for light and dark."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --bg: #f7f8fa; --card: #ffffff; --ink: #1b2330; --soft: #667085; --rule: #e4e7ec;
  --band: #f2f4f7; --a: #2f6fed; --b: #e07b39; --c: #12946f; --good: #0d7a55; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #10141b; --card: #181e27; --ink: #e7ebf1; --soft: #98a2b3; --rule: #2a3240;
  --band: #1f2631; --a: #7aa5ff; --b: #f2a06b; --c: #4cc9a0; --good: #4cc9a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 40px 24px 64px; max-width: 1120px; background: var(--bg);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header p, small, .note { color: var(--soft); }
h1 { margin: 0; font-size: 28px; letter-spacing: -0.02em; }
h2 { margin: 40px 0 12px; font-size: 17px; }
header p { margin: 4px 0 0; }
.tiles, .plots, .small { display: grid; gap: 16px; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); margin-top: 24px; }
.plots { grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
.tile, figure, .card { background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; padding: 16px 18px; margin: 0; }
.tile b { display: block; font-size: 26px; letter-spacing: -0.02em; line-height: 1.25; }
.tile span { color: var(--soft); font-size: 13px; }
.tile em { display: block; color: var(--good); font-style: normal; font-size: 13px; }
.card { overflow-x: auto; padding: 6px 18px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 14px 9px 0; text-align: left; border-top: 1px solid var(--rule); }
tr:first-child > * { border-top: 0; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
.n { text-align: right; white-space: nowrap; }
td.e, pre { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
td.e { overflow-wrap: anywhere; }
figcaption { display: flex; justify-content: space-between; gap: 12px; margin-bottom: 10px;
  font-weight: 600; font-size: 14px; }
figcaption small { font-weight: 400; }
.legend { display: flex; gap: 14px; font-weight: 400; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 6px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; }
text.y { text-anchor: end; } text.x, text.stage { text-anchor: middle; }
.grid { stroke: var(--rule); } .band { fill: var(--band); }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
details { margin-top: 32px; } summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; }
@media print { body { max-width: none; } figure, .tile { break-inside: avoid; } }
"""
