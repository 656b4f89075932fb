"""Two hosts on one machine: two network namespaces, joined by a virtual link that can be cut."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ADDRESSES = ("10.231.7.1", "10.231.7.2")


@dataclass(frozen=True)
class Hosts:
    names: tuple[str, str]
    links: tuple[str, str]

    def on(self, host: int) -> list[str]:
        """The prefix of a command that runs there."""
        return ["ip", "netns", "exec", self.names[host]]

    def cut(self) -> None:
        _run("ip", "-n", self.names[1], "link", "set", self.links[1], "down")

    def mend(self) -> None:
        _run("ip", "-n", self.names[1], "link", "set", self.links[1], "up")


@contextmanager
def two_hosts(tag: str) -> Iterator[Hosts | None]:
    """None where the machine does not allow it."""
    hosts = Hosts((f"dta{tag}", f"dtb{tag}"), (f"va{tag}", f"vb{tag}"))
    try:
        _build(hosts)
    except (OSError, subprocess.CalledProcessError):
        _clear(hosts)
        yield None
        return
    try:
        yield hosts
    finally:
        _clear(hosts)


def _build(hosts: Hosts) -> None:
    for name in hosts.names:
        _run("ip", "netns", "add", name)
    a, b = hosts.links
    _run("ip", "link", "add", a, "netns", hosts.names[0], "type", "veth", "peer", "name", b, "netns", hosts.names[1])
    for name, link, address in zip(hosts.names, hosts.links, ADDRESSES, strict=True):
        _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", link)
        for device in (link, "lo"):
            _run("ip", "-n", name, "link", "set", device, "up")


def _clear(hosts: Hosts) -> None:
    for name in hosts.names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
