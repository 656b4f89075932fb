"""A page in a real browser without a screen: what it shows, and what it does when it is clicked."""

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
# Collects errors and warnings, and refuses everything that is not part of the page itself.
_LISTEN = """<script>
window.problems = [];
addEventListener("error", (e) => problems.push(String(e.message || e.target.outerHTML).slice(0, 200)), true);
addEventListener("securitypolicyviolation", (e) => problems.push("refused: " + e.blockedURI));
for (const name of ["error", "warn"]) console[name] = (...words) => problems.push(words.join(" "));
</script>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">"""
_RUN = """<script>addEventListener("load", () => {
  const found = (%s)();
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify({ found, problems });
  document.body.append(pre);
});</script>"""


def run_in_browser(page: Path, function: str, folder: Path, width: int = 1440) -> tuple[Any, list[str]]:
    """(what the JavaScript function returns, called after the page has loaded; all errors and warnings)."""
    assert CHROMIUM is not None
    text = page.read_text(encoding="utf-8")
    probed = folder / "probed.html"
    text = text.replace("<head>", f"<head>{_LISTEN}", 1).replace("</body>", f"{_RUN % function}</body>", 1)
    probed.write_text(text, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1200", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [*command, "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=240, check=False
    )
    shown = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert shown is not None, f"the page did not load: {done.stderr[-500:]}"
    answer = json.loads(html.unescape(shown[1]))
    return answer["found"], answer["problems"]
