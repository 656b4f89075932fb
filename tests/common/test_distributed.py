"""The processes of a run: where they meet."""

from __future__ import annotations

import socket

import pytest

from dart_train.common.distributed import RankInfo
from dart_train.config import Train
from dart_train.training.deepspeed_config import optimizer_sharding, uses_deepspeed
from dart_train.training.fully_sharded import uses_fsdp2


def test_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, value)
        with pytest.raises(
            ValueError, match=f"port {port} of 127.0.0.1, .* is in use by another process.*--master_port"
        ):
            RankInfo.read().init_process_group(30, deepspeed=False)


@pytest.mark.parametrize(("settings", "deepspeed"), [
    ({"zero_stage": 2}, False),
    ({"zero_stage": 2, "offload_optimizer": True}, True),
    ({"zero_stage": 3, "offload_parameters": True}, True),
])  # fmt: skip
def test_offload_uses_deepspeed_without_a_launcher(settings: dict[str, object], deepspeed: bool) -> None:
    assert uses_deepspeed(Train.model_validate(settings), RankInfo(0, 1, 1, False)) == deepspeed


@pytest.mark.parametrize(("backend", "ranks", "deepspeed", "fsdp2"), [
    ("deepspeed", RankInfo(0, 2, 2, False), True, False),
    ("ddp", RankInfo(0, 2, 2, False), False, False),
    ("fsdp2", RankInfo(0, 2, 2, False), False, True),
    ("fsdp2", RankInfo(1, 2, 2, True), False, True),
    ("fsdp2", RankInfo(0, 1, 1, False), False, False),
])  # fmt: skip
def test_backend_is_that_of_the_recipe_under_every_launcher(
    backend: str, ranks: RankInfo, deepspeed: bool, fsdp2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", str(ranks.rank))
    monkeypatch.setenv("WORLD_SIZE", str(ranks.world))
    train = Train.model_validate({"backend": backend})
    assert (uses_deepspeed(train, ranks), uses_fsdp2(train, ranks)) == (deepspeed, fsdp2)
    stage = {"deepspeed": 2, "ddp": None, "fsdp2": "fsdp2" if fsdp2 else None}[backend]
    assert optimizer_sharding(train, ranks) == {"ranks": ranks.world, "stage": stage}
