"""The page's style sheet, light and dark, and its few lines of script."""

STYLE = """
:root { color-scheme: light dark;
  --page: #fbfaf8; --card: #ffffff; --ink: #23272e; --soft: #667080; --grid: #e4e2dd; --line: #dedbd4; --mark: #9a5b00;
  --s0: #2f6fb3; --s1: #d1495b; --s2: #3a8f5c; --s3: #8659b5; --s4: #b8860b; --s5: #4a8f9c;
  --ramp-from: #8fb8de; --ramp-to: #12305c; --warn: #fdecea; --warn-ink: #8c1d18; --note: #fff6df; --note-ink: #6b4e00; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15181c; --card: #1d2126; --ink: #e4e6ea; --soft: #9aa4b2; --grid: #31363d; --line: #343a42; --mark: #e0a95a;
  --s0: #6aa9e9; --s1: #f07a88; --s2: #6cc48d; --s3: #b794e0; --s4: #dcb44c; --s5: #78bfcc;
  --ramp-from: #2d5687; --ramp-to: #d3e6fb; --warn: #3b1a18; --warn-ink: #ffb4ab; --note: #33290f; --note-ink: #f0cf7f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(0.8rem, 3vw, 2.5rem) 3rem; max-width: 1500px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.2rem 0 0.7rem; font-size: 1.2rem; }
header p { margin: 0.2rem 0 0; color: var(--soft); }
p { margin: 0.4rem 0; max-width: 75rem; } small { color: var(--soft); }
.notices { margin-top: 1rem; } .notices p { padding: 0.55rem 0.9rem; border-radius: 6px; }
.warn { background: var(--warn); color: var(--warn-ink); } .note { background: var(--note); color: var(--note-ink); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(370px, 100%), 1fr)); gap: 0.9rem; }
.charts, .scroll { margin-top: 0.8rem; }
figure { margin: 0; padding: 0.7rem 0.8rem 0.4rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; display: flex; flex-direction: column; justify-content: space-between; }
figcaption p { margin: 0; color: var(--soft); font-size: 0.85rem; line-height: 1.35; }
svg { width: 100%; height: auto; display: block; margin-top: 0.3rem; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); font-size: 0.9rem; }
th, td { padding: 0.32rem 0.8rem; text-align: left; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } mark { background: var(--warn); color: var(--warn-ink); padding: 0 0.4rem; }
.bar { position: relative; width: 16rem; height: 1.1rem; background: var(--grid); border-radius: 3px; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--s0); opacity: 0.55; border-radius: 3px; }
.bar span { position: relative; padding-left: 0.4rem; font-size: 0.8rem; line-height: 1.1rem; display: block; }
.strip { margin: 0.8rem 0 1.4rem; overflow-x: auto; }
.strip input { width: 16rem; vertical-align: middle; margin: 0 0.8rem; }
.strip output { display: inline-block; min-width: 3ch; }
.strip img { max-width: 100%; display: block; border: 1px solid var(--line); border-radius: 6px;
  cursor: zoom-in; background: #fff; }
.strip img.full { max-width: none; cursor: zoom-out; } .strip img[hidden] { display: none; }
pre { background: var(--card); border: 1px solid var(--line); padding: 0.8rem; overflow-x: auto; font-size: 0.82rem; }
details { margin-top: 0.8rem; } summary { cursor: pointer; }
@media print { .strip input { display: none; } figure { break-inside: avoid; } }
"""

SCRIPT = """
for (const strip of document.querySelectorAll('.strip')) {
  const images = [...strip.querySelectorAll('img')], slider = strip.querySelector('input');
  const show = n => images.forEach((image, i) => image.hidden = i !== n);
  slider?.addEventListener('input', () => {
    show(+slider.value);
    strip.querySelector('output').textContent = images[+slider.value].dataset.step;
  });
  images.forEach(image => image.addEventListener('click', () => images.forEach(i => i.classList.toggle('full'))));
}
"""
