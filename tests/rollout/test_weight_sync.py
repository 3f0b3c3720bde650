"""Weights reach the engine of their own run, though Ray gives every run the same job id."""

import asyncio
import inspect
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import zmq
from verl.workers.rollout.base import get_rollout_class
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer as transfer
from verl.workers.rollout.vllm_rollout import vllm_rollout
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

import vapo_verl.trainer.worker  # noqa: F401  what a worker's process imports
from vapo_verl.process_tree import SHARED_MEMORY, remove_remains
from vapo_verl.rollout import weight_sync
from vapo_verl.rollout.weight_sync import SocketWeights

JOB = "01000000"
"""Of every run that starts a Ray cluster for itself."""
MAX_SOCKET_PATH = 107


def enter_session(patch: pytest.MonkeyPatch, name: str) -> None:
    """This process is a part of a run's Ray cluster, of which nothing is asked but its names."""
    context = SimpleNamespace(get_job_id=lambda: JOB, get_session_name=lambda: name)
    patch.setattr(weight_sync.ray, "get_runtime_context", lambda: context)


def sender_and_receiver(session: str, rank: int = 0) -> tuple[str, str]:
    """The socket's name on both sides of a run."""
    environment = {
        "RANK": str(rank),
        "RAY_LOCAL_WORLD_SIZE": "2",
        "VERL_REPLICA_RANK": str(rank),
        "VERL_RAY_JOB_ID": JOB,
    }
    config = SimpleNamespace(
        tensor_model_parallel_size=1,
        data_parallel_size=1,
        pipeline_model_parallel_size=1,
        layered_summon=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        enter_session(patch, session)
        for name, value in environment.items():
            patch.setenv(name, value)
        sender = get_rollout_class("vllm")(config, None, None)
        weight_sync.name_receiver()
        engine = SimpleNamespace(local_rank=0, model_runner=None)
        return sender.zmq_handle, vLLMColocateWorkerExtension._get_zmq_handle(engine)


@pytest.fixture
def on_cpu(monkeypatch):
    """What VERL_PLATFORM=cpu makes of a process."""
    nothing = SimpleNamespace(synchronize=lambda: None, empty_cache=lambda: None)
    monkeypatch.setattr(transfer, "is_support_ipc", lambda: False)
    monkeypatch.setattr(transfer, "get_torch_device", lambda: nothing)


@pytest.mark.parametrize("rank", [0, 1])
def test_both_sides_of_a_run_have_one_name(rank):
    sender, receiver = sender_and_receiver("session_2026-01-01_00-00-00_000000_1", rank)
    assert sender == receiver
    assert f"-replica-{rank}-rank-0" in sender
    assert len(sender.removeprefix("ipc://")) <= MAX_SOCKET_PATH


def test_runs_side_by_side_have_two():
    names = {sender_and_receiver(f"session_{number}")[0] for number in range(2)}
    assert len(names) == 2


def test_an_unknown_name_is_refused(monkeypatch):
    def named_otherwise(self: object, *_: object) -> None:
        self.zmq_handle = "ipc:///tmp/other.sock"

    monkeypatch.setattr(weight_sync.ServerAdapter, "__init__", named_otherwise)
    enter_session(monkeypatch, "session")
    with pytest.raises(RuntimeError, match="pinned verl"):
        weight_sync.VapoServerAdapter()


def test_the_adapter_sends_with_our_sender():
    """veRL's `update_weights` looks the class up in its module."""
    sender_and_receiver("session")
    source = inspect.getsource(weight_sync.ServerAdapter.update_weights)
    assert "sender = BucketedWeightSender(" in source
    assert vllm_rollout.BucketedWeightSender is weight_sync.BucketSender


@pytest.mark.usefixtures("on_cpu")
def test_an_engine_that_does_not_answer_ends_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(weight_sync, "TIMEOUT_S", 0.2)
    sender = weight_sync.BucketSender(f"ipc://{tmp_path}/socket", 1, use_shm=True)
    with pytest.raises(TimeoutError, match=r"within 0\.2 s .*gpu_memory_utilization"):
        asyncio.run(sender.async_send_weights(iter([("weight", torch.zeros(4))])))


def buckets() -> set[Path]:
    return {*SHARED_MEMORY.glob("vapo_weights_*"), *SHARED_MEMORY.glob("verl_weights_*")}


@pytest.mark.usefixtures("on_cpu")
def test_a_failed_transfer_leaves_no_bucket(monkeypatch, tmp_path):
    before = buckets()
    monkeypatch.setattr(weight_sync, "TIMEOUT_S", 0.2)
    for _ in range(2):
        sender = weight_sync.BucketSender(f"ipc://{tmp_path}/socket", 1, use_shm=True)
        with pytest.raises(TimeoutError):
            asyncio.run(sender.async_send_weights(iter([("weight", torch.zeros(4))])))
    assert buckets() == before


SEND = """
import asyncio, sys
import torch
from vapo_verl.rollout import weight_sync
from vapo_verl.rollout.weight_sync import SocketWeights

sender = weight_sync.BucketSender(sys.argv[1], 1, use_shm=True)
asyncio.run(sender.async_send_weights(iter([("weight", torch.zeros(4))])))
"""


def test_a_sender_that_is_killed_leaves_no_bucket_for_good(tmp_path):
    before = buckets()
    process = subprocess.Popen([sys.executable, "-c", SEND, f"ipc://{tmp_path}/socket"])
    while buckets() == before:
        assert process.poll() is None
        time.sleep(0.05)
    remove_remains()
    assert buckets() != before, "the bucket of a live sender is gone"
    process.kill()
    process.wait()
    time.sleep(2.1)  # what is younger may have an owner that has not locked it yet
    remove_remains()
    assert buckets() == before


@pytest.mark.parametrize(("free_mib", "bucket_mib"), [(200, 64), (64, 64), (40, 20), (4, None)])
def test_a_bucket_fits_into_shared_memory(monkeypatch, capsys, free_mib, bucket_mib):
    usage = SimpleNamespace(free=free_mib << 20)
    monkeypatch.setattr(weight_sync.shutil, "disk_usage", lambda _: usage)
    if bucket_mib is None:
        with pytest.raises(RuntimeError, match=r"no room for weights.* 4 MiB free.*--shm-size"):
            weight_sync.fitting_bucket(64 << 20)
        return
    assert weight_sync.fitting_bucket(64 << 20) == bucket_mib << 20
    assert ("WARNING" in capsys.readouterr().out) == (bucket_mib < 64)


@pytest.mark.usefixtures("on_cpu")
def test_a_weight_that_no_fitting_bucket_holds_names_the_shared_memory(monkeypatch, tmp_path):
    usage = SimpleNamespace(free=40 << 20)
    monkeypatch.setattr(weight_sync.shutil, "disk_usage", lambda _: usage)
    handle = f"ipc://{tmp_path}/socket"

    def take_the_bucket() -> None:
        with zmq.Context() as context, context.socket(zmq.REP) as socket:
            socket.connect(handle)
            socket.recv()
            socket.send(b"")

    engine = threading.Thread(target=take_the_bucket, daemon=True)
    engine.start()
    sender = weight_sync.BucketSender(handle, bucket_size_mb=64, use_shm=True)
    weights = {"embed": torch.zeros(6 << 20)}
    words = rf"embed has {24 << 20} bytes, and /dev/shm .* of {20 << 20} bytes only .*--shm-size"
    with pytest.raises(RuntimeError, match=words):
        asyncio.run(sender.async_send_weights(iter(weights.items())))
    engine.join(60)


@pytest.mark.usefixtures("on_cpu")
def test_an_engine_that_fails_ends_the_transfer_at_once(monkeypatch, tmp_path):
    def failed(_: object) -> None:
        raise MemoryError("the engine's error")

    monkeypatch.setattr(weight_sync.ray, "wait", lambda references, timeout: (references, []))
    monkeypatch.setattr(weight_sync.ray, "get", failed)
    sender = weight_sync.BucketSender(f"ipc://{tmp_path}/socket", 1, use_shm=True)
    sender.receiver = "the reference to its call"
    started = time.monotonic()
    with pytest.raises(MemoryError, match="the engine's error"):
        asyncio.run(sender.async_send_weights(iter([("weight", torch.zeros(4))])))
    assert time.monotonic() - started < 0.1 * weight_sync.TIMEOUT_S


@pytest.mark.usefixtures("on_cpu")
def test_weights_of_two_runs_at_once_do_not_mix():
    runs = {value: sender_and_receiver(f"session_{os.getpid()}_{value}") for value in (1.0, 2.0)}
    received: dict[float, list[float]] = {value: [] for value in runs}

    def receive(value: float, handle: str) -> None:
        receiver = transfer.BucketedWeightReceiver(handle, torch.device("cpu"), use_shm=True)
        receiver.receive_weights(
            lambda weights, _: received[value].extend(float(w[0]) for _, w in weights)
        )

    def send(value: float, handle: str) -> None:
        sender = weight_sync.BucketSender(handle, bucket_size_mb=1, use_shm=True)
        asyncio.run(sender.async_send_weights(iter([("weight", torch.full((4,), value))])))

    for _ in range(3):
        threads = [
            threading.Thread(target=target, args=(value, handle), daemon=True)
            for value, (sender, receiver) in runs.items()
            for target, handle in ((receive, receiver), (send, sender))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
    assert received == {value: [value] * 3 for value in runs}


def send_to(num_receivers: int, weights: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """What workers beside engines receive of the first of two ranks."""
    actor = [SocketWeights(bucket_size=1, is_master=rank == 0) for rank in range(2)]
    rollout = [SocketWeights(bucket_size=1) for _ in range(num_receivers)]
    addresses = [engine.prepare() for engine in (*actor, *rollout)]
    topology = SocketWeights.build_topology(2, num_receivers, addresses)
    for engines, arguments in zip((actor, rollout), topology, strict=True):
        for engine, receivers in zip(engines, arguments["receivers"], strict=True):
            engine.init_process_group(receivers=receivers)

    async def take(engine: SocketWeights) -> dict[str, torch.Tensor]:
        return {name: weight async for name, weight in engine.receive_weights(global_steps=1)}

    def receive(place: int) -> None:
        received[place] = asyncio.run(take(rollout[place]))

    received: list[dict[str, torch.Tensor]] = [{}] * num_receivers
    threads = [threading.Thread(target=receive, args=(n,)) for n in range(num_receivers)]
    for thread in threads:
        thread.start()
    for engine in actor:
        asyncio.run(engine.send_weights(iter(weights.items()), global_steps=1))
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for engine in (*actor, *rollout):
        engine.finalize()
    return received


def test_weights_for_another_pool_arrive_bit_by_bit_at_every_worker(monkeypatch):
    monkeypatch.setattr(weight_sync.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    generator = torch.Generator().manual_seed(0)
    weights = {
        "model.embed": torch.randn(300, 64, generator=generator),
        "model.norm": torch.randn(64, generator=generator).bfloat16(),
        "model.transposed": torch.randn(8, 4, generator=generator).T,
        "model.scalar": torch.tensor(3.5),
        "model.none": torch.empty(0, 4),
        "model.counts": torch.arange(5),
    }
    for received in send_to(2, weights) + send_to(1, weights):  # sockets are made for each transfer
        assert list(received) == list(weights)
        for name, weight in weights.items():
            assert received[name].dtype == weight.dtype
            assert torch.equal(received[name], weight)


def test_a_worker_that_takes_no_weights_is_named(monkeypatch):
    monkeypatch.setattr(weight_sync.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(weight_sync, "TIMEOUT_S", 0.2)
    with pytest.raises(TimeoutError, match=r"has sent no weights within 0\.2 s"):
        engine = SocketWeights(bucket_size=1)
        engine.prepare()
        asyncio.run(anext(engine.receive_weights()))


FORGET = """
import gc
from vapo_verl.rollout.weight_sync import SocketWeights

engine = SocketWeights(bucket_size=1, is_master=True)
engine.init_process_group(["tcp://127.0.0.1:9"])
engine.itself = engine  # as a traceback holds it
del engine
gc.collect()
"""


def test_a_transfer_that_failed_does_not_stop_the_process_when_it_is_collected():
    subprocess.run([sys.executable, "-c", FORGET], check=True, timeout=300)
