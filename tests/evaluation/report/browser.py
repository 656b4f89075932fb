"""A page looked at by a real browser without a screen: what it shows, says and does when it is clicked."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
_LISTEN = """<script>
window.heard = [];
addEventListener("error", (e) => heard.push(String(e.message || e.target.outerHTML).slice(0, 200)), true);
addEventListener("securitypolicyviolation", (e) => heard.push("refused: " + e.blockedURI));
for (const name of ["error", "warn"]) console[name] = (...words) => heard.push(words.join(" "));
</script>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">"""
_ACT = """<script>addEventListener("load", () => {
  const found = (%s)();
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify({ found, heard });
  document.body.append(pre);
});</script>"""


def look(page: Path, act: str, folder: Path) -> tuple[Any, list[str]]:
    """What the JavaScript function `act` returns, run once the page is there; and every error that was heard. Nothing
    may be fetched: the page lies on the disk, and a policy refuses all but what is in it."""
    assert CHROMIUM is not None
    text = page.read_text(encoding="utf-8")
    probed = folder / "probed.html"
    text = text.replace("<head>", f"<head>{_LISTEN}", 1).replace("</body>", f"{_ACT % act}</body>", 1)
    probed.write_text(text, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom", probed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    shown = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert shown is not None, f"the page did not load: {done.stderr[-500:]}"
    told = json.loads(html.unescape(shown[1]))
    return told["found"], told["heard"]
