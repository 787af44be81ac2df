"""The look of every page: light and dark, wide and narrow, on paper."""

CSS = """\
:root {
  --ink: #1d2024; --quiet: #5b616b; --faint: #c9ccd1; --rule: #e3e5e8; --paper: #ffffff; --code: #f5f6f7;
  --series-1: #0072b2; --series-2: #d55e00; --series-3: #009e73; --series-4: #b05a8b;
  --series-5: #8a5f10; --series-6: #5d6167;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e6e9; --quiet: #9ba2ad; --faint: #4b515a; --rule: #2c3037; --paper: #15171a; --code: #1d2024;
    --series-1: #56b4e9; --series-2: #f0954a; --series-3: #35c79b; --series-4: #e0a0c6;
    --series-5: #d9b15c; --series-6: #a3a7ad;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 3.5rem 1.25rem 5rem; max-width: 66rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word;
}
h1, h2, h3 { line-height: 1.25; font-weight: 600; margin: 0; }
h1 { font-size: 1.9rem; letter-spacing: -0.015em; }
h2 { font-size: 1.25rem; margin: 4rem 0 1.25rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; }
p { margin: 0.6rem 0 0; max-width: 42rem; }
.kicker, .quiet, figcaption p, .absent p { color: var(--quiet); }
.kicker { margin: 0 0 0.4rem; font-size: 0.875rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.25rem; margin: 1.5rem 0 0; padding: 0; list-style: none; font-size: 0.875rem; }
nav a { color: var(--quiet); text-underline-offset: 0.2em; }
nav a:hover, nav a:focus-visible { color: var(--ink); }
.tip { position: absolute; z-index: 1; padding: 0.2rem 0.5rem; border-radius: 4px; background: var(--ink); color: var(--paper); font-size: 0.8125rem; pointer-events: none; white-space: nowrap; }
.sortable th button { all: unset; cursor: pointer; }
.sortable th button:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
th[aria-sort="ascending"] button::after { content: " \\2191"; }
th[aria-sort="descending"] button::after { content: " \\2193"; }
.verdict { font-size: 1.2rem; line-height: 1.5; margin: 0 0 1.75rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1.75rem 2rem; margin: 2.25rem 0 0; }
dl div { display: flex; flex-direction: column; }
dt { font-size: 0.875rem; color: var(--quiet); }
dd { margin: 0; }
dd.value { font-size: 1.75rem; line-height: 1.3; letter-spacing: -0.01em; }
dd.note { font-size: 0.875rem; color: var(--quiet); }
figure { margin: 0 0 3rem; display: grid; gap: 1rem; }
.absent { margin: 0 0 3rem; }
@media (min-width: 54rem) {
  figure { grid-template-columns: minmax(0, 32rem) minmax(16rem, 1fr); gap: 2.75rem; align-items: center; }
}
figcaption p { font-size: 0.9375rem; }
p + figure, .scroll + figure { margin-top: 2.5rem; }
.wide { display: block; }
.wide .plot { overflow-x: auto; margin-bottom: 1rem; }
.wide .plot svg { min-width: 36rem; max-width: 50rem; }
.plot image { image-rendering: pixelated; }
.plot svg { display: block; width: 100%; height: auto; overflow: visible; }
.plot * { stroke-linejoin: round; stroke-linecap: butt; }
.plot text { font-family: inherit !important; }
p + .scroll { margin-top: 1.25rem; }
.scroll + .scroll { margin-top: 1.75rem; }
.scroll { overflow-x: auto; max-width: 100%; }
@media screen {
  /* A shade on the right, which paper covers where the table ends: there is more to scroll to. */
  .scroll {
    background:
      linear-gradient(to left, var(--paper) 1rem, transparent 2rem) right / 2rem 100% no-repeat local,
      linear-gradient(to left, var(--faint), transparent) right / 0.75rem 100% no-repeat scroll;
  }
}
.tall { max-height: 30rem; overflow-y: auto; }
.scroll:focus-visible, summary:focus-visible, pre:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.4; }
th, td { padding: 0.45rem 1.25rem 0.45rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0.25rem; }
th { font-weight: 500; color: var(--quiet); white-space: normal; vertical-align: bottom; border-bottom: 1px solid var(--faint); }
td { border-bottom: 1px solid var(--rule); }
@media screen {
  /* What a row is about, and what a column is, stay while the rest scrolls. */
  .scroll :is(th, td):first-child { position: sticky; left: 0; background: var(--paper); }
  .tall thead th { position: sticky; top: 0; background: var(--paper); }
  .tall thead th:first-child { z-index: 1; }
}
.words { text-align: left; }
td.reason, td.outcome { white-space: normal; min-width: 16rem; max-width: 34rem; overflow-wrap: anywhere; unicode-bidi: isolate; }
td.value { white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
td.SHA-256, td.tensor, td.mask, td.key { font-family: ui-monospace, "SFMono-Regular", Menlo, "Liberation Mono", monospace; font-size: 0.8125rem; }
details { margin-top: 1rem; }
summary { cursor: pointer; padding: 0.3rem 0; }
details[open] > summary { margin-bottom: 0.75rem; }
pre { margin: 0.5rem 0 1.5rem; padding: 0.8rem 1rem; overflow-x: auto; background: var(--code); border-radius: 4px; font: 0.875rem/1.5 ui-monospace, "SFMono-Regular", Menlo, "Liberation Mono", monospace; }
@media (max-width: 30rem) {
  body { padding-top: 2rem; }
  h1 { font-size: 1.55rem; }
  dl { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.5rem 1.25rem; }
  dd.value { font-size: 1.4rem; }
  th, td { padding-right: 1.1rem; }
  .scroll .words:first-child { min-width: 7.5rem; max-width: 42vw; white-space: normal; overflow-wrap: anywhere; }
}
@media print {
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .tip { display: none; }
  h2 { break-after: avoid; margin-top: 2rem; }
  figure, .absent, dl div, tr { break-inside: avoid; }
  .scroll, .tall { overflow: visible; max-height: none; }
  td { white-space: normal; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
"""The look of every page, light and dark."""
