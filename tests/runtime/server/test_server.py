from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mtllm_edge import Bundle, Classifier
from mtllm_edge.languages import identification
from mtllm_edge.server.auth import Door
from mtllm_edge.server.limits import Limits
from mtllm_edge.server.worker import Model
from tests.fixtures.tiny_bundle import MAX_TOKENS, make_tiny_bundle
from tests.runtime.server.conftest import PATIENCE, Held, Served, serving, until

TEXTS = ["the team is good", "не хорошо", "中国 在 这 里", "a bad hotel, a good match", "هو في البيت"]
TOKEN = "correct-horse-battery"
MIB = 2**20


def error_of(response: httpx2.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


def test_classify_says_what_the_classifier_says(served: Served, tiny_bundle: Path) -> None:
    long = "the " * 3 * MAX_TOKENS
    answer = served.post("/classify", {"texts": [*TEXTS, long], "task": "topic"}).json()
    assert (answer["model"], answer["task"]) == ("tiny", "topic")
    with Classifier.load(tiny_bundle, task="topic") as classifier:
        expected = classifier.classify([*TEXTS, long])
    assert [found["truncated"] for found in answer["predictions"]] == [False] * len(TEXTS) + [True]
    for found, prediction in zip(answer["predictions"], expected, strict=True):
        assert found["label"] == prediction.label
        assert found["confidence"] == pytest.approx(prediction.confidence, abs=1e-4)
        assert found["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-4)
        assert found["tokens"] == prediction.tokens


def test_everybody_gets_their_own_answers(served: Served) -> None:
    tasks = ("topic", "sentiment")
    alone = {
        (task, text): served.post("/classify", {"texts": [text], "task": task}).json()["predictions"][0]
        for task in tasks
        for text in TEXTS
    }

    def client(number: int) -> None:
        task = tasks[number % 2]
        texts = [TEXTS[(number + place) % len(TEXTS)] for place in range(1 + number % 4)]
        for _ in range(3):
            found = served.post("/classify", {"texts": texts, "task": task}).json()["predictions"]
            assert [one["label"] for one in found] == [alone[task, text]["label"] for text in texts]
            for one, text in zip(found, texts, strict=True):
                assert one["probabilities"] == pytest.approx(alone[task, text]["probabilities"], abs=1e-3)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(client, range(16)))


def test_pairs_and_choices(tmp_path: Path) -> None:
    tasks = {"nli": ("entailment", "neutral", "contradiction"), "copa": ()}
    bundle = make_tiny_bundle(tmp_path / "bundle", tasks=tasks, kinds={"nli": "pair", "copa": "multiple_choice"})
    pairs = [("the team is good", "a good team"), ("a bad hotel", "the hotel is good")]
    choices = [("the hotel is bad", ["it is good", "it is bad", "no"])]
    with Classifier.load(bundle, task="nli") as classifier, serving(bundle) as served:
        for task, texts in (("nli", pairs), ("copa", choices)):
            found = served.post("/classify", {"texts": texts, "task": task}).json()["predictions"]
            expected = classifier.classify(texts, task=task)
            assert [one["label"] for one in found] == [one.label for one in expected]
        wrong = error_of(served.post("/classify", {"texts": [pairs[0], "one text"], "task": "nli"}))
        assert wrong["message"].startswith(
            "task 'nli' reads a pair (text, text_pair) at a time, but text 1 is one text"
        )


def test_languages(served: Served) -> None:
    def languages(language: str | list[str | None] | None) -> list[str | None]:
        body = {
            "texts": ["Das Hotel ist nicht gut und sehr teuer.", "не хорошо"],
            "task": "topic",
            "language": language,
        }
        return [found.get("language") for found in served.post("/classify", body).json()["predictions"]]

    assert languages(None) == [None, None]
    assert languages("German") == languages("de") == ["deu_Latn", "deu_Latn"]
    assert languages("auto") == ["deu_Latn", "rus_Cyrl"]
    assert languages(["German", None]) == ["deu_Latn", None]
    assert languages(["sw", "auto"]) == ["swh_Latn", "rus_Cyrl"]


def test_a_language_is_identified_once(served: Served, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Das Hotel ist nicht gut und sehr teuer.", "12:30", "не хорошо"]
    with Classifier.load(tiny_bundle, task="topic") as classifier:
        expected = classifier.classify(texts, language="auto")
    identify, calls = identification.identify, []

    def counting(texts: Sequence[str]) -> list[str | None]:
        calls.append(list(texts))
        return identify(texts)

    monkeypatch.setattr(identification, "identify", counting)
    found = served.post("/classify", {"texts": texts, "task": "topic", "language": "auto"}).json()["predictions"]
    assert calls == [texts]
    assert [one["language"] for one in found] == ["deu_Latn", "und", "rus_Cyrl"]
    assert [one["language"] for one in found] == [one.language for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-4)


@pytest.mark.filterwarnings("ignore::mtllm_edge.languages.warnings.LanguageWarning")  # as `serve` does
def test_a_model_that_must_be_told_the_language(tiny_variant: Callable[..., Path]) -> None:
    with serving(tiny_variant(languages=("deu_Latn", "eng_Latn"))) as served:

        def ask(language: str | list[str | None] | None, texts: int = 1) -> httpx2.Response:
            return served.post("/classify", {"texts": ["the team"] * texts, "task": "topic", "language": language})

        german, english = ask(["de", "eng_Latn"], 2).json()["predictions"]
        assert (german["language"], english["language"]) == ("deu_Latn", "eng_Latn")
        assert german["probabilities"] != english["probabilities"], "the same text, read as two languages"
        for found in (german, english):
            (alone,) = ask(found["language"]).json()["predictions"]
            assert found["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-4)
        assert error_of(ask(["de", None], 2))["message"].startswith("this encoder requires the language of text 1; ")
        for language, code in (("German", "deu_Latn"), ("lb", "deu_Latn"), ("auto", "eng_Latn")):
            assert ask(language).json()["predictions"][0]["language"] == code
        for wrong, message in (
            (None, "this encoder requires the language of the texts"),
            ("zh", "the encoder does not support Chinese (zh)"),
        ):
            assert ask(wrong).status_code == 422
            assert error_of(ask(wrong))["message"].startswith(message)


def test_languages_share_a_batch(tiny_bundle: Path) -> None:
    class Slow(Model):
        def compute(self, task: str | None, items: list[Any]) -> Sequence[Any]:
            calls.append(len(items))
            at_work.set()
            assert let_go.wait(PATIENCE)
            return super().compute(task, items)

    calls: list[int] = []
    at_work, let_go = threading.Event(), threading.Event()
    with serving(tiny_bundle, load=lambda: Slow(Bundle.open(tiny_bundle))) as served, ThreadPoolExecutor(8) as threads:
        first = later(threads, served, ["first"])
        assert at_work.wait(PATIENCE)
        others = [later(threads, served, ["the team"], language) for language in ("de", "auto", "fr", None)]
        until(lambda: served.engine.batcher.waiting == len(others))
        let_go.set()
        assert "language" not in first.result(PATIENCE).json()["predictions"][0]
        found = [call.result(PATIENCE).json()["predictions"][0].get("language") for call in others]
    assert found == ["deu_Latn", "eng_Latn", "fra_Latn", None]
    assert calls == [1, 4]


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"texts": ["a", " "], "task": "topic"}, "text 1 is empty; remove it or give it some words", None),
        ({"texts": ["a", 7], "task": "topic"}, "text 1 is none of a text, a pair", "texts[1]"),
        ({"texts": ["a", ["b"]], "task": "topic"}, "text 1 is none of a text, a pair", "texts[1]"),
        ({"texts": "a", "task": "topic"}, "texts: input should be a valid list", "texts"),
        ({"task": "topic"}, "texts: field required", "texts"),
        ({"texts": ["a"], "tusk": "topic"}, "tusk: extra inputs are not permitted", "tusk"),
        ({"texts": ["a"]}, "name a task; this model has topic, sentiment", "task"),
        ({"texts": ["a"], "task": "topics"}, "there is no task 'topics'; this model has topic, sentiment", "task"),
        ({"texts": ["a"], "task": "topic", "language": "Klingonish"}, "unknown language 'Klingonish'; ", None),
        ({"texts": ["a", "b"], "task": "topic", "language": ["de", "x-y"]}, "text 1: unknown language 'x-y'; ", None),
        ({"texts": ["a", "b"], "task": "topic", "language": ["de"]}, "there are 2 texts and 1 languages; ", None),
        (
            {"texts": ["a"], "task": "topic", "language": []},
            "there are 1 texts and 0 languages; give one of each",
            None,
        ),
        ({"texts": ["a"], "task": "topic", "language": [7]}, "language must be a code or name, or a list", "language"),
        ({"texts": ["a"], "task": "topic", "language": {}}, "language must be a code or name, or a list", "language"),
        ({"texts": [["a", "b"]], "task": "topic"}, "task 'topic' reads one text at a time, but text 0 is a pair", None),
        ({"texts": ["a"] * 1025, "task": "topic"}, "there are 1025 texts, at most 1024 fit into a request", "texts"),
        ({"texts": ["a", "b" * 20_001], "task": "topic"}, "text 1 has 20001 characters, at most 20000", "texts[1]"),
    ],
)
def test_what_is_wrong_with_a_request(served: Served, body: object, message: str, param: str | None) -> None:
    response = served.post("/classify", body)
    assert response.status_code == 422
    error = error_of(response)
    assert error["message"].startswith(message)
    assert error["param"] == param


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ('{"texts": [', "application/json", "the body is no JSON: "),
        ("", "application/json", "the body: field required"),
        ("[]", "application/json", "the body: input should be"),
        ('{"texts": ["\\ud800"], "task": "topic"}', "application/json", "text 0 holds half of a surrogate pair"),
        ('{"texts": ["a"], "\\ud800": 1}', "application/json", "the body: input should be a valid string"),
        # what a form of another page can send without asking first
        ('{"texts": ["a"], "task": "topic"}', "text/plain", "the body: input should be"),
    ],
)
def test_bodies_that_are_none(served: Served, content: str, kind: str, message: str) -> None:
    response = served.client.post("/classify", content=content, headers={"Content-Type": kind})
    assert response.status_code == 422
    assert error_of(response)["message"].startswith(message)


def test_other_paths_and_methods(served: Served) -> None:
    assert (served.get("/nowhere").status_code, served.get("/classify").status_code) == (404, 405)
    assert error_of(served.get("/nowhere"))["code"] == "not_found"
    assert served.get("/docs").status_code == 404, "its scripts would come from elsewhere"
    assert set(served.get("/openapi.json").json()["paths"]) >= {"/classify", "/v1/embeddings"}


def test_no_other_page_may_read_answers(served: Served) -> None:
    elsewhere = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for response in (
        served.client.options("/classify", headers=elsewhere),
        served.get("/v1/models", headers=elsewhere),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("sized", [True, False], ids=["content-length", "chunked"])
def test_a_body_that_is_too_long(tiny_bundle: Path, sized: bool) -> None:
    body = json.dumps({"texts": ["a" * 1000] * 3000, "task": "topic"}).encode()
    content = body if sized else iter([body[start : start + 65536] for start in range(0, len(body), 65536)])
    with serving(tiny_bundle, limits=Limits(body_bytes=MIB), load=Held) as served:
        response = served.client.post("/classify", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert error_of(response)["message"].startswith(f"the body is longer than {MIB} bytes")


def later(threads: ThreadPoolExecutor, served: Served, texts: list[str], language: str | None = None) -> Any:
    return threads.submit(served.post, "/classify", {"texts": texts, "task": "topic", "language": language})


def labels(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [found["label"] for found in response.json()["predictions"]]


def test_a_full_queue_is_429_and_what_waits_is_batched(held: tuple[Served, Held]) -> None:
    served, model = held
    with ThreadPoolExecutor(8) as threads:
        first = later(threads, served, ["first"])
        assert model.at_work.wait(PATIENCE)
        two = later(threads, served, ["b", "c"])
        until(lambda: served.engine.batcher.waiting == 2)
        another = later(threads, served, ["d"])
        until(lambda: served.engine.batcher.waiting == 3)
        refused = served.post("/classify", {"texts": ["e", "f"], "task": "topic"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert error_of(refused)["code"] == "too_many_requests"
        assert "mtllm_edge_queue_texts 3.0" in served.get("/metrics").text
        model.let_go.set()
        assert [labels(call.result(PATIENCE)) for call in (first, two, another)] == [["first"], ["b", "c"], ["d"]]
    assert model.calls == [["first"], ["b", "d"], ["c"]]


def test_who_hangs_up_leaves_the_queue(held: tuple[Served, Held]) -> None:
    served, model = held
    with ThreadPoolExecutor(8) as threads:
        first = later(threads, served, ["first"])
        assert model.at_work.wait(PATIENCE)
        with httpx2.Client() as client, pytest.raises(httpx2.ReadTimeout):
            client.post(f"{served.url}/classify", json={"texts": ["b", "c"], "task": "topic"}, timeout=0.5)
        until(lambda: served.engine.batcher.waiting == 0)
        model.let_go.set()
        assert labels(first.result(PATIENCE)) == ["first"]
    until(lambda: 'requests_total{endpoint="/classify",status="499"} 1.0' in served.get("/metrics").text)
    assert model.calls == [["first"]]


def test_an_engine_that_fails_fails_one_request_and_keeps_its_reasons(held: tuple[Served, Held]) -> None:
    served, model = held
    with ThreadPoolExecutor(8) as threads:
        first = later(threads, served, ["first"])
        assert model.at_work.wait(PATIENCE)
        good, bad = later(threads, served, ["good"]), later(threads, served, ["poison"])
        until(lambda: served.engine.batcher.waiting == 2)
        model.let_go.set()
        assert [labels(call.result(PATIENCE)) for call in (first, good)] == [["first"], ["good"]]
        assert bad.result(PATIENCE).status_code == 500
        assert error_of(bad.result(PATIENCE))["message"] == "the server failed; its log says how"


def test_while_the_model_is_loaded(tiny_bundle: Path) -> None:
    model, loading = Held(), Held()

    def load() -> Held:
        assert loading.let_go.wait(PATIENCE)
        return model

    with serving(tiny_bundle, load=load, wait=False) as served:
        health = served.get("/healthz")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        early = served.post("/classify", {"texts": ["a"], "task": "topic"})
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert error_of(early)["message"] == "the model is being loaded; try again in a moment"
        assert served.get("/v1/models").json()["data"][0]["id"] == "tiny"
        loading.let_go.set()
        model.let_go.set()
        until(lambda: served.get("/healthz").json() == {"status": "ready"})
        assert served.post("/classify", {"texts": ["a"], "task": "topic"}).status_code == 200


def test_the_token(tiny_bundle: Path) -> None:
    model = Held()
    model.let_go.set()
    body = {"texts": ["a"], "task": "topic"}
    with serving(tiny_bundle, door=Door(TOKEN, False), load=lambda: model) as served:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert served.get(path).status_code == 401
        for header in ("", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer ÄÖ"):
            response = served.post("/classify", body, headers={"Authorization": header.encode("latin-1")})
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert error_of(response)["message"] == "a token is needed, as: Authorization: Bearer TOKEN"
        for scheme in ("Bearer", "bearer"):
            assert served.post("/classify", body, headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200
        assert (served.get("/").status_code, served.get("/healthz").status_code) == (200, 200)
        assert served.get("/healthz", headers={"Host": "models.example.org"}).status_code == 200


def test_loopback_answers_to_loopback_names_only(served: Served) -> None:
    for host in ("127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.2"):
        assert served.get("/v1/models", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"):
        response = served.get("/v1/models", headers={"Host": host})
        assert response.status_code == 400, host
        assert error_of(response)["message"] == "this server answers to localhost, 127.0.0.1 and [::1] only"


def test_metrics(tiny_bundle: Path) -> None:
    model = Held()
    model.let_go.set()
    with serving(tiny_bundle, load=lambda: model) as served:
        served.post("/classify", {"texts": ["a", "b"], "task": "topic"})
        served.post("/classify", {"texts": ["c"], "task": "topic"})
        served.post("/classify", {"texts": [], "task": "none"})
        served.get("/a/path/that/somebody/guesses")
        response = served.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert found["mtllm_edge_requests_total", "/classify", "200"] == 2
    assert found["mtllm_edge_requests_total", "/classify", "422"] == 1
    assert found["mtllm_edge_requests_total", "404", "other"] == 1
    assert found["mtllm_edge_request_seconds_count", "/classify"] == 3
    assert found["mtllm_edge_texts_total", "/classify"] == 3
    assert found["mtllm_edge_tokens_total", "/classify"] == 3
    assert found["mtllm_edge_queue_texts",] == 0
    assert found["mtllm_edge_batch_texts_count",] == 2
    assert found["mtllm_edge_batch_texts_sum",] == 3
    assert found["mtllm_edge_batch_tokens_bucket", "32.0"] == 2


def test_the_page_may_use_nothing_but_itself(served: Served) -> None:
    response = served.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    page = response.text
    assert response.headers["content-type"].startswith("text/html")
    assert "://" not in page.replace("http://www.w3.org/2000/svg", ""), "nothing comes from elsewhere"
    assert "innerHTML" not in page
