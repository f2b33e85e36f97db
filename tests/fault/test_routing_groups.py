"""Between groups: fallbacks of every kind, limits, budgets, tags, order. Over real HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.routed import entry, fails, ok, routed
from tests.support.stack import ANSWER, CHAT, STREAM
from tianji_mw.call import Call
from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.report import report
from tianji_mw.testing import Reply, drive

TWO = {"a": ("first", {}), "b": ("second", {}), "c": ("third", {})}


def groups(**names: str) -> Any:
    """Upstream -> the name of its group."""
    return lambda urls: [entry(name, urls[llm], info={"id": llm}) for llm, name in names.items()]


def ask(model: str, **more: Any) -> dict[str, Any]:
    return {**CHAT, "model": model, **more}


async def test_a_fallback_after_the_retries(tmp_path: Any) -> None:
    says = {"a": fails(500), "b": fails(503), "c": ok}
    settings = {"num_retries": 2, "fallbacks": [{"first": ["second", "third"]}]}
    models = groups(a="first", b="second", c="third")
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        answer = await routing.ask(ask("first"))
        assert answer.status == 200
        assert answer.headers["x-litellm-model-group"] == "third"
        assert answer.headers["x-litellm-attempted-fallbacks"] == "2"
        # No wait and three attempts each: `second` has no list of its own, and the first one's goes on.
        assert routing.asked() == {"a": 3, "b": 3, "c": 1}


async def test_litellm_settings_is_a_place_for_fallbacks_too(tmp_path: Any) -> None:
    settings = {"num_retries": 0, "fallbacks": [{"first": ["second"]}]}
    models = groups(a="first", b="second")
    async with routed({"a": fails(500), "b": ok}, models, tmp_path=tmp_path, litellm_settings=settings) as routing:
        assert (await routing.ask(ask("first"))).status == 200
        assert routing.asked() == {"a": 1, "b": 1}


async def test_default_fallbacks_hold_for_every_group(tmp_path: Any) -> None:
    settings = {"num_retries": 0, "default_fallbacks": ["second"]}
    models = groups(a="first", b="second")
    async with routed({"a": fails(500), "b": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert (await routing.ask(ask("first"))).headers["x-litellm-model-group"] == "second"


async def test_fallbacks_end_although_they_go_in_a_circle(tmp_path: Any) -> None:
    settings = {"num_retries": 0, "fallbacks": [{"first": ["second"]}, {"second": ["first"]}]}
    models = groups(a="first", b="second")
    says = {"a": fails(500, text="a"), "b": fails(500, text="b")}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        answer = await routing.ask(ask("first"))
        assert (answer.status, answer.json["error"]["message"]) == (500, "b")
        assert routing.asked() == {"a": 1, "b": 1}


LONG = {"status": 400, "code": "context_length_exceeded"}
POLICY = {"status": 400, "code": "content_policy_violation"}


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("context_window_fallbacks", LONG), ("content_policy_fallbacks", POLICY)],
    ids=["long", "policy"],
)
async def test_typed_fallbacks_are_for_their_errors(tmp_path: Any, kind: str, fault: dict[str, Any]) -> None:
    settings = {kind: [{"first": ["second"]}], "fallbacks": [{"first": ["third"]}]}
    models = groups(a="first", b="second", c="third")
    says = {"a": fails(fault["status"], code=fault["code"]), "b": ok, "c": ok}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert (await routing.ask(ask("first"))).headers["x-litellm-model-group"] == "second"
        assert routing.asked() == {"a": 1, "b": 1, "c": 0}


async def test_a_typed_error_without_a_list_of_its_own_uses_the_general_one(tmp_path: Any) -> None:
    models = groups(a="first", b="second")
    says = {"a": fails(400, code="context_length_exceeded"), "b": ok}
    settings = {"fallbacks": [{"first": ["second"]}]}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert (await routing.ask(ask("first"))).status == 200


async def test_a_plain_400_falls_back_nowhere(tmp_path: Any) -> None:
    models = groups(a="first", b="second")
    settings = {"fallbacks": [{"first": ["second"]}]}
    async with routed({"a": fails(400), "b": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert (await routing.ask(ask("first"))).status == 400
        assert routing.asked()["b"] == 0


async def test_what_a_request_may_say_itself(tmp_path: Any) -> None:
    models = groups(a="first", b="second", c="third")
    settings = {"num_retries": 3, "fallbacks": [{"first": ["second"]}]}
    says = {"a": fails(500), "b": ok, "c": ok}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        answer = await routing.ask(ask("first", fallbacks=["third"], num_retries=1))
        assert answer.headers["x-litellm-model-group"] == "third"
        assert routing.asked() == {"a": 2, "b": 0, "c": 1}
        answer = await routing.ask(ask("first", disable_fallbacks=True), headers={"x-litellm-num-retries": "0"})
        assert answer.status == 500
        assert routing.asked() == {"a": 3, "b": 0, "c": 1}
        answer = await routing.ask(ask("third", mock_testing_fallbacks=True, fallbacks=[{"model": "second"}]))
        assert answer.headers["x-litellm-model-group"] == "second"
        assert routing.asked() == {"a": 3, "b": 1, "c": 1}
        for llm in routing.llms.values():
            for request in llm.requests:
                assert request.json.keys() <= {"model", "messages"}


async def test_the_errors_behind_a_fallback_are_told_on_request(tmp_path: Any) -> None:
    models = groups(a="first", b="second", c="third")
    settings = {"num_retries": 0, "fallbacks": [{"first": ["second", "third"]}]}
    says = {"a": fails(429), "b": fails(503), "c": ok}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        for request in (ask("first"), {**STREAM, "model": "first"}):
            answer = await routing.ask({**request, "include_fallback_errors": True})
            assert answer.status == 200
            told = json.loads(answer.headers["x-litellm-fallback-errors"])
            assert [(one["type"], one["code"], one["param"]) for one in told] == [
                ("RateLimitError", "429", None), ("ServiceUnavailableError", "503", None)
            ]  # fmt: skip
            assert all(one["message"] for one in told)
            assert "x-litellm-fallback-errors" not in (await routing.ask(request)).headers
        direct = await routing.ask(ask("third", include_fallback_errors=True))
        assert "x-litellm-fallback-errors" not in direct.headers
        assert "include_fallback_errors" not in str([request.json for request in routing.llms["c"].requests])


async def test_what_is_left_of_a_groups_limits(tmp_path: Any) -> None:
    models = lambda urls: [  # noqa: E731
        entry("m", urls["a"], rpm=10, tpm=1_000, info={"id": "a"}),
        entry("m", urls["b"], rpm=5, info={"id": "b"}),
        entry("free", urls["b"], info={"id": "c"}),
    ]
    settings = {"optional_pre_call_checks": ["enforce_model_rate_limits"], "model_group_alias": {"other": "m"}}
    async with routed({"a": ok, "b": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        for number, request in enumerate((ask("m"), ask("other"), {**STREAM, "model": "m"}), start=1):
            found = {k: v for k, v in (await routing.ask(request)).headers.items() if k.startswith("x-ratelimit-")}
            assert found.pop("x-ratelimit-limit-requests") == "15"
            assert found.pop("x-ratelimit-remaining-requests") == str(15 - number)
            assert found.pop("x-ratelimit-limit-tokens") == "1000"
            assert 0 < int(found.pop("x-ratelimit-remaining-tokens")) <= 1000
            assert not found
        assert "x-ratelimit-limit-requests" not in (await routing.ask(ask("free"))).headers


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_retries": -1}, {"num_retries": 99}, {"num_retries": "2"}, {"fallbacks": [1]},
        {"fallbacks": [{"model": "second", "messages": []}]}, {"timeout": -1},
    ],
    ids=str,
)  # fmt: skip
async def test_a_wrong_wish_is_refused_before_anything_is_sent(tmp_path: Any, wrong: dict[str, Any]) -> None:
    async with routed({"a": ok}, groups(a="first"), tmp_path=tmp_path) as routing:
        answer = await routing.ask(ask("first", **wrong))
        assert answer.status == 400
        assert next(iter(wrong)) in answer.json["error"]["message"]
        assert routing.asked() == {"a": 0}


async def test_a_fallback_that_the_key_may_not_use_is_left_out(tmp_path: Any) -> None:
    models = groups(a="first", b="second", c="third")
    settings = {"num_retries": 0, "fallbacks": [{"first": ["second", "third"]}]}
    keys = [{"key": "sk-1234", "models": ["first", "third"]}]
    says = {"a": fails(500), "b": ok, "c": ok}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings, virtual_keys=keys) as routing:
        answer = await routing.ask(ask("first"), headers={"authorization": "Bearer sk-1234"})
        assert answer.headers["x-litellm-model-group"] == "third"
        assert routing.asked()["b"] == 0


async def test_a_key_may_use_the_models_of_its_access_groups(tmp_path: Any) -> None:
    models = lambda urls: [  # noqa: E731
        entry("new", urls["a"], info={"access_groups": ["beta", "all"]}),
        entry("old", urls["a"], info={"access_groups": ["all"]}),
        entry("try-*", urls["a"], info={"access_groups": ["beta"]}),
        entry("own", urls["a"]),
    ]
    keys = [{"key": "sk-1234", "models": ["beta", "own"]}, {"key": "sk-2222", "models": ["gamma"]}]
    async with routed({"a": ok}, models, tmp_path=tmp_path, virtual_keys=keys) as routing:

        async def status(key: str, model: str) -> int:
            return (await routing.ask(ask(model), headers={"authorization": f"Bearer {key}"})).status

        assert [await status("sk-1234", model) for model in ("new", "try-this", "own", "old", "beta")] == [
            200, 200, 200, 403, 404
        ]  # fmt: skip
        assert [await status("sk-2222", model) for model in ("new", "gamma")] == [403, 404]  # nobody is in that group
        listed = await drive(routing.app, method="GET", path="/v1/models", headers={"authorization": "Bearer sk-1234"})
        assert sorted(one["id"] for one in json.loads(listed.body)["data"]) == ["new", "own", "try-*"]


async def test_a_retry_policy_counts_by_the_kind_of_error(tmp_path: Any) -> None:
    settings = {
        "retry_after": 0,
        "retry_policy": {"InternalServerErrorRetries": 1, "BadRequestErrorRetries": 2},
        "model_group_retry_policy": {"second": {"InternalServerErrorRetries": 0}},
    }
    says = {"a": fails(500), "a2": fails(500), "a3": fails(500), "b": fails(500), "b2": fails(500), "c": fails(400)}
    models = groups(a="first", a2="first", a3="first", b="second", b2="second", c="third")
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        for model, count in (("first", 2), ("second", 1)):
            before = sum(routing.asked().values())
            assert (await routing.ask(ask(model))).status == 500
            assert sum(routing.asked().values()) - before == count


# --- limits


async def test_rpm_is_a_limit_and_says_so(tmp_path: Any) -> None:
    models = lambda urls: [entry("first", urls["a"], rpm=5), entry("first", urls["b"], rpm=5)]  # noqa: E731
    settings = {"routing_strategy": "usage-based-routing-v2", "num_retries": 0}
    async with routed({"a": ok, "b": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(20, ask("first")) == {200: 10, 429: 10}
        assert routing.asked() == {"a": 5, "b": 5}
        answer = await routing.ask(ask("first"))
        assert 50 <= int(answer.headers["retry-after"]) <= 61
        assert "No deployments available for the model 'first'" in answer.json["error"]["message"]
        assert "rate limit" in answer.json["error"]["message"]


async def test_routing_groups_have_a_strategy_of_their_own(tmp_path: Any) -> None:
    prices = {"a": 1e-6, "b": 9e-6}
    models = lambda urls: [  # noqa: E731
        *(entry("cheap", urls[llm], input_cost_per_token=prices[llm], info={"id": f"cheap-{llm}"}) for llm in "ab"),
        *(entry("counted", urls[llm], rpm=2, info={"id": f"counted-{llm}"}) for llm in "ab"),
        *(entry("usual", urls[llm], rpm=1, info={"id": f"usual-{llm}"}) for llm in "ab"),
    ]
    settings = {
        "routing_strategy": "simple-shuffle",
        "routing_groups": [
            {"group_name": "thrifty", "models": ["cheap"], "routing_strategy": "cost-based-routing"},
            {"group_name": "strict", "models": ["counted"], "routing_strategy": "usage-based-routing-v2"},
        ],
    }
    async with routed({"a": ok, "b": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(20, ask("cheap")) == {200: 20}
        assert routing.asked() == {"a": 20, "b": 0}
        assert await routing.many(10, ask("counted")) == {200: 4, 429: 6}
        assert await routing.many(40, ask("usual")) == {200: 40}  # what is a limit there is a weight here
        told = await report(routing.router)
        assert {group["model"]: group["strategy"] for group in told["groups"]} == {
            "cheap": "cost-based-routing", "counted": "usage-based-routing-v2", "usual": "simple-shuffle",
        }  # fmt: skip
        picked = {one["id"]: one["picked"] for group in told["groups"] for one in group["deployments"]}
        assert picked["usual-a"] > 0 < picked["usual-b"]


async def test_rpm_is_a_weight_with_a_shuffle(tmp_path: Any) -> None:
    models = lambda urls: [entry("first", urls["a"], rpm=1)]  # noqa: E731
    settings = {"routing_strategy": "simple-shuffle"}
    async with routed({"a": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(20, ask("first")) == {200: 20}
    settings = {"routing_strategy": "simple-shuffle", "optional_pre_call_checks": ["enforce_model_rate_limits"]}
    async with routed({"a": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(20, ask("first")) == {200: 1, 429: 19}


async def test_tokens_are_counted_as_the_provider_tells(tmp_path: Any) -> None:
    models = lambda urls: [entry("first", urls["a"], tpm=1000)]  # noqa: E731
    settings = {"routing_strategy": "usage-based-routing-v2", "num_retries": 0}
    told = {**ANSWER, "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}}
    says = {"a": lambda request: Reply.json(told)}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        statuses = await routing.many(30, ask("first", max_tokens=10), at_once=1)
        assert statuses[200] in (10, 11), statuses


async def test_order_is_a_rank(tmp_path: Any) -> None:
    models = lambda urls: [  # noqa: E731
        entry("first", urls["a"], order=1), entry("first", urls["b"], order=2), entry("first", urls["c"]),
    ]  # fmt: skip
    says = {"a": fails(500), "b": ok, "c": ok}
    settings = {"cooldown_time": 60}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(20, ask("first"), at_once=1) == {200: 20}
        assert routing.asked() == {"a": 5, "b": 20, "c": 0}


async def test_tags(tmp_path: Any) -> None:
    models = lambda urls: [  # noqa: E731
        entry("first", urls["a"], tags=["free"]), entry("first", urls["b"], tags=["paid"]),
    ]  # fmt: skip
    settings = {"enable_tag_filtering": True, "num_retries": 0}
    async with routed({"a": ok, "b": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        for _ in range(5):
            assert (await routing.ask(ask("first", metadata={"tags": ["paid"]}))).status == 200
        assert routing.asked() == {"a": 0, "b": 5}
        assert (await routing.ask(ask("first"), headers={"x-litellm-tags": "free"})).status == 200
        assert routing.asked() == {"a": 1, "b": 5}
        answer = await routing.ask(ask("first", tags=["gold"]))
        assert answer.status in (401, 403)
        assert "tag" in answer.json["error"]["message"]
        assert "gold" in answer.json["error"]["message"]


async def test_a_prompt_too_long_for_one_goes_to_another(tmp_path: Any) -> None:
    models = lambda urls: [  # noqa: E731
        entry("first", urls["a"], info={"max_input_tokens": 100}),
        entry("first", urls["b"], info={"max_input_tokens": 1000}),
    ]  # fmt: skip
    long = [{"role": "user", "content": "word " * 300}]
    too_long = [{"role": "user", "content": "word " * 3000}]
    settings = {"enable_pre_call_checks": True}
    async with routed({"a": ok, "b": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        for _ in range(5):
            assert (await routing.ask(ask("first", messages=long))).status == 200
        assert routing.asked() == {"a": 0, "b": 5}
        answer = await routing.ask(ask("first", messages=too_long))
        assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
        assert routing.asked() == {"a": 0, "b": 5}


async def test_a_provider_budget_is_spent_and_the_error_says_so(tmp_path: Any) -> None:
    prices = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001}
    models = lambda urls: [entry("first", urls["a"], **prices)]  # noqa: E731
    settings = {"num_retries": 0, "provider_budget_config": {"openai": {"budget_limit": 0.02, "time_period": "1d"}}}
    async with routed({"a": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        statuses = await routing.many(20, ask("first", max_tokens=2), at_once=4)
        # Five tokens a call at $0.001; the last one may go past the limit.
        assert 3 <= statuses[200] <= 5
        assert statuses[429] == 20 - statuses[200]
        answer = await routing.ask(ask("first", max_tokens=2))
        assert answer.status == 429
        assert "budget" in answer.json["error"]["message"]
        assert "$0.02" in answer.json["error"]["message"]
        assert int(answer.headers["retry-after"]) > 80_000


async def test_a_stream_counts_for_a_budget_too(tmp_path: Any) -> None:
    prices = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.001}
    models = lambda urls: [entry("first", urls["a"], max_budget=0.02, budget_duration="1h", **prices)]  # noqa: E731
    async with routed({"a": ok}, models, tmp_path=tmp_path, router_settings={"num_retries": 0}) as routing:
        statuses = await routing.many(30, {**STREAM, "model": "first", "max_tokens": 2}, at_once=1)
        assert 1 <= statuses[200] < 30
        assert routing.llms["a"].requests[0].json["stream_options"] == {"include_usage": True}


# --- a strategy of one's own


class Last(Picker):
    """The last one, or the one at `place`."""

    place: int = -1

    def pick(self, deployments: Candidates, call: Call) -> Deployment:
        return deployments[self.place]


@pytest.mark.parametrize(("args", "used"), [({}, "b"), ({"place": 0}, "a")])
async def test_a_strategy_by_its_class(tmp_path: Any, args: dict[str, Any], used: str) -> None:
    settings = {"routing_strategy": f"{__name__}:Last", "routing_strategy_args": args}
    models = groups(a="first", b="first")
    async with routed({"a": ok, "b": ok}, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert await routing.many(10, ask("first")) == {200: 10}
        assert routing.asked()[used] == 10
