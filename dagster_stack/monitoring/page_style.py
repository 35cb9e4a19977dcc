"""How the page looks: in light and dark as the browser asks for it, on a phone as on a wide screen.

Texts have a contrast of at least 4.5 to 1 to what is behind them, lines of 3 to 1; lines differ by dashes too.
"""

LIGHT = ("#0b62c4", "#b34700", "#00745a", "#8a2fa0", "#6b5a00", "#b0124b", "#00708f", "#555555")
DARK = ("#6cb2ff", "#ff9a5c", "#4fd1a5", "#d79bf0", "#e3c84a", "#ff86a8", "#5fd0e8", "#bbbbbb")
#: With round ends, which add to each dash what they take of the gap.
DASHES = ("none", "7 5", "0 5", "9 5 0 5")

BASE = """
:root { color-scheme: light dark; --back: #ffffff; --card: #f4f5f7; --text: #1b1f24; --muted: #57606a; --rule: #c9ced4;
  --well: #0a6b3d; --unwell: #b3261e; --unknown: #7a5200; --link: #0b57b0; }
@media (prefers-color-scheme: dark) { :root { --back: #14171c; --card: #1d2127; --text: #e6e9ed; --muted: #a5adb8;
  --rule: #3c434c; --well: #5fd08f; --unwell: #ff8f85; --unknown: #f0c05a; --link: #82b6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1rem; background: var(--back); color: var(--text);
  font: 16px/1.45 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: baseline; justify-content: space-between; }
h1 { font-size: 1.1rem; margin: 0; } h2 { font-size: 1.25rem; margin: 1.5rem 0 .5rem; } h3 { font-size: 1rem; margin: 0; }
p { margin: .25rem 0; color: var(--muted); }
a { color: var(--link); }
nav a { display: inline-block; padding: .35rem .8rem; border: 1px solid var(--rule); border-radius: .4rem; }
nav a[aria-current] { background: var(--link); color: var(--back); text-decoration: none; }
.well { color: var(--well); } .unwell { color: var(--unwell); } .unknown { color: var(--unknown); }
.alarms { margin: 0; padding: .6rem .8rem .6rem 2rem; background: var(--card); border-left: .3rem solid var(--unwell); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: .85rem; padding-bottom: .3rem; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, th:last-child, td:last-child { text-align: left; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .8rem; }
dt { color: var(--muted); font-size: .85rem; } dd { margin: 0; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; margin-top: .8rem; }
figure { margin: 0; padding: .8rem; background: var(--card); border-radius: .5rem; min-width: 0; }
figcaption p { font-size: .85rem; }
figure > svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--muted); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0 0; padding: 0; list-style: none; font-size: .85rem;
  overflow-wrap: anywhere; }
footer { margin-top: 2rem; color: var(--muted); }
"""


def lines(colours: tuple[str, ...]) -> str:
    return " ".join(f"--s{index}: {colour};" for index, colour in enumerate(colours))


STYLE = "\n".join(
    [
        BASE,
        f":root {{ {lines(LIGHT)} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {lines(DARK)} }} }}",
        *(
            f".s{index} {{ stroke: var(--s{index}); stroke-dasharray: {DASHES[index % len(DASHES)]}; }}"
            for index in range(len(LIGHT))
        ),
    ]
)
