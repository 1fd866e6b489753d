"""Draws metrics.jsonl of a training run as an SVG: text loss and recall over bytes read, phases marked. Standard library only.

    python3 scripts/training_curves.py RUN/metrics.jsonl OUT.svg
"""

import json
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 420, 60, 60, 40, 50
TEXT_LOSS, RECALL = "#2563eb", "#d97706"


def read(path: str) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()]
    return [record for record in records if "tokens" in record and "text_loss" in record]


def draw(records: list[dict]) -> str:
    last = records[-1]["tokens"]
    low, high = 0.8, 3.0  # nats a byte

    def x(tokens: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * tokens / last

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(1.0, max(0.0, share))

    def line(points: list[tuple[float, float]], colour: str) -> str:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        "<title>Text loss and recall while training</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    phase, phases = None, 0
    for record in records:
        name = (record.get("attention"), record.get("sequence_length"))
        if name == phase:
            continue
        phase, phases = name, phases + 1
        at = x(record["tokens"])
        kind = "MoBA" if str(name[0]).startswith("moba") else "window"
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#cbd5e1"/>')
        parts.append(f'<text x="{at + 3:.1f}" y="{TOP - 8 - 14 * (phases % 2)}" fill="#475569">{kind} {name[1] // 1024}K</text>')
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="{TEXT_LOSS}">{low + tick * (high - low):.2f}</text>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y(tick) + 4:.1f}" fill="{RECALL}">{tick:.0%}</text>')
    for million in range(0, int(last / 1e6) + 1, 100):
        parts.append(f'<text x="{x(million * 1e6):.1f}" y="{HEIGHT - 28}" text-anchor="middle" fill="#475569">{million}M</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#475569">bytes read</text>')
    parts.append(line([(x(r["tokens"]), y((r["text_loss"] - low) / (high - low))) for r in records], TEXT_LOSS))
    parts.append(line([(x(r["tokens"]), y(r["recall_exact"])) for r in records if "recall_exact" in r], RECALL))
    parts.append(f'<text x="{LEFT + 10}" y="{TOP + 16}" fill="{TEXT_LOSS}">text loss, nats a byte</text>')
    parts.append(f'<text x="{WIDTH - RIGHT - 10}" y="{TOP + 16}" text-anchor="end" fill="{RECALL}">values recalled exactly</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    records = read(sys.argv[1])
    if not records:
        print(f"{sys.argv[1]}: no step records in it", file=sys.stderr)
        return 1
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(draw(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
