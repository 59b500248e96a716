"""Who sees what: the API server is asked, seldom, and its answer is kept to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpubatch_operator.kube.client import ApiError
from gpubatch_operator.web import access, caching, reviews
from gpubatch_operator.web.access import Access
from gpubatch_operator.web.problems import RequestError

JSON = dict[str, Any]
RIGHTS = {"ann": {""}, "bob": {"a", "c"}, "eve": set[str]()}


class ApiServer:
    """Knows tokens that are names, and what those may list."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.rights = {user: set(namespaces) for user, namespaces in RIGHTS.items()}
        self.down = False
        self.now = 0.0

    async def review(self, path: str, body: JSON) -> JSON:
        await asyncio.sleep(0)
        if self.down:
            raise ApiError(0, "Unreachable", "connection refused")
        if path == reviews.TOKEN_REVIEWS:
            user = body["spec"]["token"]
            self.asked.append(f"who is {user}")
            known = user in self.rights
            return {"status": {"authenticated": known, "user": {"username": user, "groups": ["g"]} if known else {}}}
        spec = body["spec"]
        what = spec["resourceAttributes"]
        assert (what["group"], what["resource"], what["verb"]) == ("gpubatch.dev", "gpubatchjobs", "list")
        self.asked.append(f"{spec['user']} in {what.get('namespace', 'all')}")
        return {"status": {"allowed": what.get("namespace", "") in self.rights[spec["user"]]}}

    def access(self, namespaces: tuple[str, ...] = ("a", "b", "c")) -> Access:
        return Access(self.review, lambda: namespaces, lambda: self.now)


async def refused(gate: Access, header: str | None, asked: tuple[str, ...] = ()) -> RequestError:
    with pytest.raises(RequestError) as e:
        await gate.scope(header, asked)
    return e.value


async def test_who_may_list_everywhere_sees_everything_and_nothing_more_is_asked() -> None:
    api = ApiServer()
    assert await api.access().scope("Bearer ann", ()) is None
    assert api.asked == ["who is ann", "ann in all"]


async def test_others_see_the_namespaces_that_they_may_list() -> None:
    api = ApiServer()
    gate = api.access()
    assert await gate.scope("Bearer bob", ()) == {"a", "c"}
    assert await gate.scope("Bearer bob", ("c",)) == {"c"}
    assert await gate.scope("Bearer ann", ("c", "new")) == {"c", "new"}


@pytest.mark.parametrize("header", [None, "", "Basic YW5uOg==", "Bearer", "Bearer  "])
async def test_without_a_token_it_is_401_and_nobody_is_asked(header: str | None) -> None:
    api = ApiServer()
    error = await refused(api.access(), header)
    assert (error.status, api.asked) == (401, [])
    assert error.response().headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_token_that_nobody_knows_is_401() -> None:
    assert (await refused(ApiServer().access(), "Bearer mallory")).status == 401


async def test_without_a_right_it_is_403_which_names_user_and_namespace() -> None:
    gate = ApiServer().access()
    assert (await refused(gate, "Bearer eve")).status == 403
    error = await refused(gate, "Bearer bob", ("a", "b"))
    assert (error.status, error.message) == (403, "bob may not list gpubatchjobs in namespace b")


async def test_the_same_questions_at_the_same_time_are_asked_once() -> None:
    api = ApiServer()
    gate = api.access()
    await asyncio.gather(*(gate.scope("Bearer bob", ()) for _ in range(50)))
    assert sorted(api.asked) == sorted(["who is bob", "bob in all", "bob in a", "bob in b", "bob in c"])


async def test_answers_are_used_for_a_minute_and_no_longer() -> None:
    api = ApiServer()
    gate = api.access()
    await gate.scope("Bearer bob", ())
    api.now = 20.0
    await gate.scope("Bearer bob", ())
    assert len(api.asked) == 5
    api.rights["bob"] = set()
    api.now = 61.0
    assert (await refused(gate, "Bearer bob")).status == 403


async def test_who_asks_all_the_time_never_waits_and_loses_a_right_all_the_same() -> None:
    api = ApiServer()
    gate = api.access()
    await gate.scope("Bearer bob", ())
    api.rights["bob"] = {"a"}
    api.now = 40.0
    assert await gate.scope("Bearer bob", ()) == {"a", "c"}, "renewed meanwhile, and not waited for"
    await asyncio.sleep(0.01)
    api.now = 46.0
    assert await gate.scope("Bearer bob", ()) == {"a"}


async def test_a_namespace_that_comes_is_asked_about_at_once() -> None:
    api, there = ApiServer(), ["a"]
    gate = Access(api.review, lambda: tuple(there), lambda: api.now)
    assert await gate.scope("Bearer bob", ()) == {"a"}
    there.append("c")
    assert await gate.scope("Bearer bob", ()) == {"a", "c"}


async def test_if_the_api_server_is_away_who_is_known_is_served_and_others_are_told_503() -> None:
    api = ApiServer()
    gate = api.access()
    await gate.scope("Bearer ann", ())
    api.down, api.now = True, 40.0
    assert await gate.scope("Bearer ann", ()) is None
    error = await refused(gate, "Bearer bob")
    assert (error.status, error.retry_after) == (503, 2)


async def test_who_goes_away_does_not_take_the_answer_from_the_others() -> None:
    gate = ApiServer().access()
    first, second = (asyncio.create_task(gate.scope("Bearer bob", ())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == {"a", "c"}


async def test_what_is_remembered_is_bounded_whatever_tokens_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "CALLERS", 5)
    api = ApiServer()
    api.rights |= {f"user-{i}": {""} for i in range(20)}
    gate = api.access()
    for i in range(20):
        await gate.scope(f"Bearer user-{i}", ())
    assert len(gate._reviews._callers) == len(gate._scopes) == 5


async def test_an_error_is_not_kept() -> None:
    cache, answers = caching.Cache[str, int](2, lambda: 0.0), iter([ValueError("no"), 7])

    async def load() -> tuple[int, caching.Life]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer, reviews.GOOD

    with pytest.raises(ValueError, match="no"):
        await cache.get("a", load)
    assert await cache.get("a", load) == 7
