"""Two hosts on one machine: network namespaces with addresses of their own, joined by a cable that can be cut."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ADDRESSES = ("10.231.7.1", "10.231.7.2")


@dataclass(frozen=True)
class Hosts:
    names: tuple[str, str]
    cables: tuple[str, str]

    def on(self, host: int) -> list[str]:
        """What a command begins with to run there."""
        return ["ip", "netns", "exec", self.names[host]]

    def cut(self) -> None:
        _run("ip", "-n", self.names[1], "link", "set", self.cables[1], "down")

    def mend(self) -> None:
        _run("ip", "-n", self.names[1], "link", "set", self.cables[1], "up")


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
    a, b = hosts.cables
    _run("ip", "link", "add", a, "netns", hosts.names[0], "type", "veth", "peer", "name", b, "netns", hosts.names[1])
    for name, cable, address in zip(hosts.names, hosts.cables, ADDRESSES, strict=True):
        _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", cable)
        for device in (cable, "lo"):
            _run("ip", "-n", name, "link", "set", device, "up")


def _clear(hosts: Hosts) -> None:
    for name in hosts.names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
