"""Pages that are one file: text and pictures in it, nothing fetched, light or dark as the reader has it."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

__all__ = ["escape", "page", "picture"]

STYLE = """
:root{color-scheme:light dark;--ground:light-dark(#f4f5f6,#0e1114);--card:light-dark(#fff,#171b20);
--ink:light-dark(#14181d,#eef1f4);--quiet:light-dark(#5d6873,#96a1ac);--line:light-dark(#d6dbe0,#2b323a)}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:90rem;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,"Noto Sans CJK SC","Microsoft YaHei","PingFang SC",sans-serif}
h1{font-size:1.4rem;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2.5rem 0 .25rem}p{margin:0 0 1rem;max-width:48rem}
.quiet,figcaption span{color:var(--quiet)}
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(15rem,100%),1fr))}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.5rem;overflow:hidden}
figure img{display:block;width:100%;height:auto}
figcaption{padding:.5rem .75rem;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
figcaption span{display:block;font-size:.85rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .75rem .25rem 0;text-align:left;border-bottom:1px solid var(--line)}
""".strip()


def page(title: str, body: str) -> str:
    """A whole HTML document. title: plain text; body: HTML, what came from files in it through `escape`."""
    # the policy holds even where a name from a file should have slipped through: no script runs, nothing is fetched
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n{body}\n</html>\n"
    )


def picture(image: Image.Image, alt: str, *, quality: int = 80) -> str:
    """An `img` that carries its JPEG in itself; alt: plain text."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{image.width}" height="{image.height}" alt="{escape(alt)}">'
    )
