"""All requests about a prompt reach one server, and the servers get as many prompts each."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.workers.rollout import router as verl_router

from tests.composing import compose_once
from vapo_verl.rollout.prober import prompt_session
from vapo_verl.rollout.router import PromptRouter

PROMPTS = [f"prompt-{i}" for i in range(8)]
REQUESTS = [prompt for prompt in PROMPTS for _ in range(4 + 4)]  # 4 responses, each with its probes


def pool(num_servers):
    return {f"server-{i}": f"actor-{i}" for i in range(num_servers)}


@settings(max_examples=30)
@given(order=st.permutations(REQUESTS), finished=st.lists(st.booleans(), min_size=64, max_size=64))
def test_each_prompt_has_one_of_two_servers_and_each_server_four_prompts(order, finished):
    router, server_of = PromptRouter(pool(2)), {}
    for prompt, ends in zip(order, finished, strict=True):
        server_id, actor = router.acquire_server(prompt)
        assert actor == server_id.replace("server", "actor")
        assert server_of.setdefault(prompt, server_id) == server_id
        if ends:
            router.release_server(server_id, prompt)
    assert sorted(Counter(server_of.values()).values()) == [4, 4]
    assert router.get_total_inflight() == finished.count(False)


@given(st.integers(1, 8), st.integers(0, 5), st.integers(1, 50))
def test_prompts_that_follow_each_other_are_spread_evenly(num_servers, before, num_prompts):
    router = PromptRouter(pool(num_servers))
    for i in range(before):
        router.acquire_server(f"earlier-{i}")
    counts = Counter(router.acquire_server(str(i))[0] for i in range(num_prompts))
    shares = [counts[server_id] for server_id in pool(num_servers)]
    assert max(shares) - min(shares) <= 1


def test_sessions_of_a_server_that_left_go_on_together_at_another():
    router = PromptRouter(pool(3))
    before = {prompt: router.acquire_server(prompt)[0] for prompt in PROMPTS}
    gone = before[PROMPTS[0]]
    router.remove_servers([gone])
    for _ in range(2):  # a sibling, a probe
        after = {prompt: router.acquire_server(prompt)[0] for prompt in PROMPTS}
        assert gone not in after.values()
        assert all(after[p] == before[p] for p in PROMPTS if before[p] != gone)
    assert max(Counter(after.values()).values()) <= 5
    router.release_server(gone, PROMPTS[0])  # of a request that was under way


def test_a_server_that_came_back_takes_its_sessions_and_new_ones():
    router = PromptRouter(pool(2))
    server_id, _ = router.acquire_server("prompt")
    router.add_servers({server_id: "restarted"})
    assert router.acquire_server("prompt") == (server_id, "restarted")
    assert server_id in {router.acquire_server(f"new-{i}")[0] for i in range(2)}


def test_an_empty_pool_is_an_error_until_servers_join():
    router = PromptRouter({})
    with pytest.raises(RuntimeError, match="No available servers"):
        router.acquire_server("prompt")
    router.add_servers(pool(1))
    assert router.acquire_server("prompt") == ("server-0", "actor-0")


def test_a_long_validation_forgets_no_prompt():
    router = PromptRouter(pool(2))
    first = {str(i): router.acquire_server(str(i))[0] for i in range(30_000)}
    assert all(router.acquire_server(i)[0] == server_id for i, server_id in first.items())


def test_verl_makes_this_router_from_the_composed_config():
    config = compose_once("vapo")
    OmegaConf.resolve(config)
    content = verl_router._load_router_yaml(config.actor_rollout_ref.rollout.router_config_path)
    assert verl_router._resolve_router_class(content["router_class"]) is PromptRouter
    assert PromptRouter(pool(1), content).get_all_servers() == ["server-0"]


def test_a_prompt_of_a_step_is_a_session_and_a_row_without_uid_one_of_its_own():
    assert prompt_session({"uid": "a"}) == prompt_session({"uid": "a", "session_id": 1}) == "a"
    assert prompt_session({}) != prompt_session({})
