"""How report.html looks: quiet, wide where tables need it, readable on paper too."""

STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --paper: #ffffff; --ground: #f5f6f8; --mark: #2b6cb0;
  --good: #2f855a; --bad: #c05640; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; color: var(--ink); background: var(--ground); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
header { padding: 44px 0 30px; background: var(--paper); border-bottom: 1px solid var(--line); }
header h1 { margin: 0 0 6px; font-size: 28px; font-weight: 650; letter-spacing: -0.01em; }
header p { margin: 0; color: var(--soft); }
.page { max-width: 1340px; margin: 0 auto; padding: 0 28px; }
nav { position: sticky; top: 0; z-index: 5; background: rgba(255, 255, 255, 0.94);
  border-bottom: 1px solid var(--line); }
nav .page { display: flex; flex-wrap: wrap; gap: 4px 22px; padding-top: 9px; padding-bottom: 9px; }
nav a { color: var(--soft); text-decoration: none; font-size: 14px; }
nav a:hover, nav a:focus { color: var(--mark); }
section { margin: 30px 0; padding: 24px 28px 28px; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; scroll-margin-top: 54px; }
h2 { margin: 0 0 4px; font-size: 20px; font-weight: 620; }
h3 { margin: 26px 0 6px; font-size: 16px; font-weight: 620; }
p.note { margin: 2px 0 16px; max-width: 82ch; color: var(--soft); }
ul.short { margin: 12px 0 0; padding-left: 20px; max-width: 92ch; }
ul.short li { margin: 5px 0; }
.scroll { overflow-x: auto; margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { position: relative; vertical-align: bottom; font-weight: 600; color: var(--soft); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--mark); outline-offset: 3px; border-radius: 3px; }
th button::after { content: " \\2195"; color: #b8c0ca; font-size: 11px; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: var(--mark); }
th[aria-sort=descending] button::after { content: " \\2193"; color: var(--mark); }
td.n, th.n { text-align: right; }
tbody tr:hover { background: #f8fafc; }
tbody tr.full td { background: #f4f8fc; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.dim { color: #9aa5b1; }
.under { color: #9aa5b1; font-size: 11px; }
.clear { font-weight: 650; }
.bar { display: inline-block; position: relative; width: 128px; height: 12px; margin-right: 9px; vertical-align: -1px;
  background: #edf0f3; border-radius: 6px; }
.bar i { position: absolute; top: 2px; bottom: 2px; background: #a9c6e4; border-radius: 4px; }
.bar b { position: absolute; top: -1px; width: 3px; bottom: -1px; margin-left: -1.5px; background: var(--mark);
  border-radius: 2px; }
.plots { display: grid; gap: 20px; margin-top: 14px; }
.plots img, .heat img { max-width: 100%; height: auto; }
label.pick { margin-right: 18px; color: var(--soft); font-size: 14px; }
select { margin-left: 6px; padding: 4px 8px; font: inherit; color: var(--ink); background: var(--paper);
  border: 1px solid #cbd2d9; border-radius: 6px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(520px, 1fr)); gap: 18px; margin-top: 14px; }
.card { padding: 14px 16px 16px; border: 1px solid var(--line); border-radius: 8px; }
.card h4 { margin: 0 0 2px; font-size: 15px; font-weight: 600; }
.card p { margin: 0 0 10px; color: var(--soft); font-size: 13.5px; }
.views { display: flex; flex-wrap: wrap; gap: 12px; }
.views figure { margin: 0; width: 220px; }
.views img { display: block; width: 100%; border-radius: 5px; }
.views figcaption { margin-top: 4px; font-size: 12.5px; line-height: 1.4; color: var(--soft); }
dl.how { display: grid; grid-template-columns: max-content 1fr; gap: 4px 22px; margin: 12px 0 0; font-size: 14px; }
dl.how dt { color: var(--soft); }
dl.how dd { margin: 0; overflow-wrap: anywhere; }
footer { padding: 6px 0 44px; color: var(--soft); font-size: 13px; }
@media (max-width: 640px) { .cards { grid-template-columns: 1fr; } section { padding: 18px 16px; } }
@media print { nav { display: none; } body { background: #fff; } section { border: 0; break-inside: avoid; } }
"""
