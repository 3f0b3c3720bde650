"""A language model as judge gives R_acc of Eq. 5 for answers that no rule can compare.

It also says whether a response counts as correct, which opens the gate of the anchors. A judge
without a decision is a failure of its row: the response is left out and counted, and never
scored 0.
"""

import asyncio
import os
import platform
import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import IO, Any

from vapo_verl import heartbeat
from vapo_verl.claims.options import (
    NO_KEY,
    OPENAI_URL,
    EndpointOptions,
    RetryOptions,
    require_address,
)
from vapo_verl.claims.report import RunCounts
from vapo_verl.claims.requests.reply import FatalFault, ImageFailed
from vapo_verl.claims.requests.retry import Pacer, PatientAsker
from vapo_verl.config import JUDGE_STYLE, JudgeConfig, VapoConfig
from vapo_verl.data.control_tokens import ESCAPE
from vapo_verl.evaluation.benchmarks.judging import (
    Case,
    decision_line,
    decisions_in,
    read_decision,
)
from vapo_verl.evaluation.benchmarks.rules.extraction import visible
from vapo_verl.files import obstacle
from vapo_verl.reward.accuracy import truths_of
from vapo_verl.reward.components import with_opening_tag
from vapo_verl.rollout.sample import Outcome

JUDGE_KEY = "vapo.reward.judge"
BEAT_S = 5.0
"""Seconds between two heartbeats while waiting before a retry of the judge."""


class JudgeFailed(RuntimeError):
    """The judge's endpoint failed, or its reply is not a decision."""


def check_reward_judge(config: Any) -> None:
    """Refuse a judge that is not named or cannot be asked.

    Raises:
        ValueError: with key, value and fix.
    """
    reward = config.vapo.reward
    if reward.answer_style == JUDGE_STYLE and not reward.judge.model:
        raise ValueError(
            f"vapo.reward.answer_style={JUDGE_STYLE} and {JUDGE_KEY}.model=''; name the judge's "
            "model"
        )
    if reward.judge.model:
        if not reward.judge.model.strip():
            raise ValueError(f"{JUDGE_KEY}.model={reward.judge.model!r} is blank; name a model")
        judge_options(JudgeConfig(**reward.judge), os.environ)
        limit = config.vapo.rollout.timeout_s
        if reward.judge.timeout_s >= limit:
            raise ValueError(
                f"{JUDGE_KEY}.timeout_s={reward.judge.timeout_s} is not below "
                f"vapo.rollout.timeout_s={limit}, after which the run ends as one that hangs; "
                "lower the first, or raise the second"
            )
        _check_cache(reward.judge.cache_dir)


def _check_cache(folder: str) -> None:
    if folder and (reason := obstacle(Path(folder))):
        raise ValueError(
            f"{JUDGE_KEY}.cache_dir={folder!r} cannot be written: {reason}; name a folder that you "
            "may write, or leave it out"
        )


def judge_options(settings: JudgeConfig, environment: Mapping[str, str]) -> EndpointOptions:
    """The judge's endpoint: its key comes from OPENAI_API_KEY alone.

    Raises:
        ValueError: OpenAI itself is meant and there is no key, or an option is out of range.
    """
    url = settings.base_url or environment.get("OPENAI_BASE_URL") or OPENAI_URL
    key = environment.get("OPENAI_API_KEY") or NO_KEY
    if url == OPENAI_URL and key == NO_KEY:
        raise ValueError(
            f"{JUDGE_KEY}.model={settings.model!r} without an address asks {OPENAI_URL}, and "
            f"OPENAI_API_KEY is not set; set it, or {JUDGE_KEY}.base_url to a server without keys"
        )
    if settings.base_url:
        require_address(url, f"{JUDGE_KEY}.base_url")
    return EndpointOptions(
        model=settings.model,
        base_url=url,
        api_key=key,
        timeout_s=settings.timeout_s,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
    )


def case_of_row(row: Mapping[str, Any], text: str, prompt_end: str = "") -> Case | None:
    """The judge's input: the question's text, the ground truth, and the text after the reasoning.
    None without such a text: no answer is incorrect, and no judge is asked.

    A response without tags is an answer in full. Reasoning that never ends is a draft, also where
    the chat template opens it.

    Args:
        prompt_end: text of the prompt's last tokens.
    """
    answer = visible(with_opening_tag(text, prompt_end))
    if not answer:
        return None
    turns = [turn["content"] for turn in row["raw_prompt"] if turn["role"] == "user"]
    parts = [[turn] if isinstance(turn, str) else turn for turn in turns]
    texts = [
        part if isinstance(part, str) else part.get("text") or "" for turn in parts for part in turn
    ]
    question = "".join(texts).replace(ESCAPE, "").strip()
    truths = truths_of(row["reward_model"]["ground_truth"])
    return Case(question=question, answer=" or ".join(truths), prediction=answer)


class RewardJudge:
    """Asks a judge about answers: about each once, with a bounded number of requests at a time.

    Decisions are kept in memory, and on disk where ``cache_dir`` names a folder. Every process
    writes a file of its own there, and reads all of them when it starts.
    """

    def __init__(self, settings: JudgeConfig, options: EndpointOptions) -> None:
        self._settings, self._options = settings, options
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._known: dict[str, bool] = {}
        self._asked: dict[str, asyncio.Task[bool]] = {}
        self._file: IO[str] | None = None
        self._asker: PatientAsker | None = None
        if settings.cache_dir:
            self._open_cache(Path(settings.cache_dir))

    def _open_cache(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("decisions_*.jsonl")):
            content = path.read_bytes()  # another process may be writing its last line
            self._known |= decisions_in(content[: content.rfind(b"\n") + 1], path)
        own = folder / f"decisions_{platform.node()}_{os.getpid()}.jsonl"
        # Lines reach the kernel at once, so that kill -9 loses none, and no disk is waited for: the
        # event loop of all responses would wait, too.
        self._file = own.open("a", encoding="utf-8", buffering=1)
        if own.stat().st_size and not own.read_bytes().endswith(b"\n"):
            self._file.write("\n")  # after a killed process that had the same id

    async def decide(self, case: Case) -> bool:
        """Whether the answer is correct. Equal cases are asked about once.

        Raises:
            JudgeFailed: there is no decision; the next call asks again.
        """
        key = case.key(self._options.model)
        if key in self._known:
            return self._known[key]
        task = self._asked.get(key)
        if task is None or task.done():
            task = self._asked[key] = asyncio.ensure_future(self._ask(case, key))
            task.add_done_callback(partial(self._answered, key))
        try:
            return await asyncio.shield(task)
        except JudgeFailed as failed:
            raise JudgeFailed(str(failed)) from failed.__cause__

    def _answered(self, key: str, task: asyncio.Task[bool]) -> None:
        if self._asked.get(key) is task:
            del self._asked[key]
        if not task.cancelled():
            task.exception()  # retrieved, in case nobody waited for it

    async def _ask(self, case: Case, key: str) -> bool:
        async with self._slots:
            try:
                asker = await self._open()
                reply = await asker.ask([{"role": "user", "content": case.prompt()}], Random(key))
            except (ImageFailed, FatalFault) as fault:
                raise JudgeFailed(str(fault)) from fault
        text = reply.choices[0].text
        decision = read_decision(text)
        if decision is None:
            raise JudgeFailed("the reply is neither correct nor incorrect")
        self._known[key] = decision
        if self._file is not None:
            self._file.write(decision_line(key, decision, self._options.model, text) + "\n")
        return decision

    async def _open(self) -> PatientAsker:
        if self._asker is None:
            from vapo_verl.claims.requests.endpoint import Endpoint  # aiohttp is slow to import

            self._endpoint = await Endpoint(self._options).__aenter__()
            retry = RetryOptions(max_retries=self._settings.max_retries)
            pacer = Pacer(sleep=_sleep)
            self._asker = PatientAsker(self._endpoint, pacer, retry, RunCounts(), sleep=_sleep)
        return self._asker

    async def close(self) -> None:
        """End the connections, and the file."""
        if self._asker is not None:
            await self._endpoint.__aexit__(None, None, None)
            self._asker = None
        if self._file is not None:
            self._file.close()


async def _sleep(seconds: float) -> None:
    """Wait before a retry, with heartbeats. Retries are bounded, so that a wait is no hang."""
    end = time.monotonic() + seconds
    heartbeat.beat()
    while (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(left, BEAT_S))
        heartbeat.beat()


@cache
def shared_judge(settings: JudgeConfig) -> RewardJudge:
    """The judge of this process and its event loop.

    Raises:
        ValueError: a row asks for a judge, and no model is named.
    """
    if not settings.model:
        raise ValueError(f"a row has the style '{JUDGE_STYLE}'; name a model in {JUDGE_KEY}.model")
    return RewardJudge(settings, judge_options(settings, os.environ))


async def judge_response(
    settings: VapoConfig, row: Mapping[str, Any], text: str, prompt_end: str
) -> Outcome:
    """The outcome of a response by the judge.

    Args:
        prompt_end: text of the prompt's last tokens.

    Raises:
        JudgeFailed: there is no decision.
    """
    case = case_of_row(row, text, prompt_end)
    if case is None:
        return Outcome.of(0.0)
    return Outcome.of(float(await shared_judge(settings.reward.judge).decide(case)))
