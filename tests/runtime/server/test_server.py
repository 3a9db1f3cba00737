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
from mtllm_edge.server.auth import AccessPolicy
from mtllm_edge.server.limits import Limits
from mtllm_edge.server.worker import Model
from tests.fixtures.tiny_bundle import MAX_TOKENS, make_tiny_bundle
from tests.fixtures.tolerances import LLAMA_CPP, assert_probabilities_close
from tests.runtime.server.conftest import TIMEOUT_S, BlockingModel, RunningServer, run_server, wait_until

TEXTS = ["the team is good", "не хорошо", "中国 在 这 里", "a bad hotel, a good match", "هو في البيت"]
TOKEN = "correct-horse-battery"
MIB = 2**20


def error_of(response: httpx2.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


def test_classify_returns_the_classifiers_predictions(server: RunningServer, tiny_bundle: Path) -> None:
    long = "the " * 3 * MAX_TOKENS
    content = server.post("/classify", {"texts": [*TEXTS, long], "task": "topic"}).json()
    assert (content["model"], content["task"]) == ("tiny", "topic")
    with Classifier.load(tiny_bundle, task="topic") as classifier:
        expected = classifier.classify([*TEXTS, long])
    assert [result["truncated"] for result in content["predictions"]] == [False] * len(TEXTS) + [True]
    for result, prediction in zip(content["predictions"], expected, strict=True):
        assert result["label"] == prediction.label
        assert_probabilities_close(result["confidence"], prediction.confidence, LLAMA_CPP)
        assert_probabilities_close(result["probabilities"], prediction.probabilities, LLAMA_CPP)
        assert result["tokens"] == prediction.tokens


def test_concurrent_clients_get_their_own_results(server: RunningServer) -> None:
    tasks = ("topic", "sentiment")
    expected = {
        (task, text): server.post("/classify", {"texts": [text], "task": task}).json()["predictions"][0]
        for task in tasks
        for text in TEXTS
    }

    def client(number: int) -> None:
        task = tasks[number % 2]
        texts = [TEXTS[(number + place) % len(TEXTS)] for place in range(1 + number % 4)]
        for _ in range(3):
            results = server.post("/classify", {"texts": texts, "task": task}).json()["predictions"]
            assert [result["label"] for result in results] == [expected[task, text]["label"] for text in texts]
            for result, text in zip(results, texts, strict=True):
                assert_probabilities_close(result["probabilities"], expected[task, text]["probabilities"], LLAMA_CPP)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(client, range(16)))


def test_pairs_and_choices(tmp_path: Path) -> None:
    tasks = {"nli": ("entailment", "neutral", "contradiction"), "copa": ()}
    bundle = make_tiny_bundle(tmp_path / "bundle", tasks=tasks, kinds={"nli": "pair", "copa": "multiple_choice"})
    pairs = [("the team is good", "a good team"), ("a bad hotel", "the hotel is good")]
    choices = [("the hotel is bad", ["it is good", "it is bad", "no"])]
    with Classifier.load(bundle, task="nli") as classifier, run_server(bundle) as server:
        for task, texts in (("nli", pairs), ("copa", choices)):
            results = server.post("/classify", {"texts": texts, "task": task}).json()["predictions"]
            expected = classifier.classify(texts, task=task)
            assert [result["label"] for result in results] == [prediction.label for prediction in expected]
        error = error_of(server.post("/classify", {"texts": [pairs[0], "one text"], "task": "nli"}))
        assert error["message"].startswith(
            "task 'nli' reads a pair (text, text_pair) at a time, but text 1 is one text"
        )


def test_languages(server: RunningServer) -> None:
    def languages(language: str | list[str | None] | None) -> list[str | None]:
        body = {
            "texts": ["Das Hotel ist nicht gut und sehr teuer.", "не хорошо"],
            "task": "topic",
            "language": language,
        }
        return [prediction.get("language") for prediction in server.post("/classify", body).json()["predictions"]]

    assert languages(None) == [None, None]
    assert languages("German") == languages("de") == ["deu_Latn", "deu_Latn"]
    assert languages("auto") == ["deu_Latn", "rus_Cyrl"]
    assert languages(["German", None]) == ["deu_Latn", None]
    assert languages(["sw", "auto"]) == ["swh_Latn", "rus_Cyrl"]


def test_a_language_is_identified_once(
    server: RunningServer, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Das Hotel ist nicht gut und sehr teuer.", "12:30", "не хорошо"]
    with Classifier.load(tiny_bundle, task="topic") as classifier:
        expected = classifier.classify(texts, language="auto")
    identify, calls = identification.identify, []

    def counting(texts: Sequence[str]) -> list[str | None]:
        calls.append(list(texts))
        return identify(texts)

    monkeypatch.setattr(identification, "identify", counting)
    results = server.post("/classify", {"texts": texts, "task": "topic", "language": "auto"}).json()["predictions"]
    assert calls == [texts]
    assert [result["language"] for result in results] == ["deu_Latn", "und", "rus_Cyrl"]
    assert [result["language"] for result in results] == [prediction.language for prediction in expected]
    for result, prediction in zip(results, expected, strict=True):
        assert_probabilities_close(result["probabilities"], prediction.probabilities, LLAMA_CPP)


@pytest.mark.filterwarnings("ignore::mtllm_edge.languages.warnings.LanguageWarning")  # as `serve` does
def test_an_encoder_that_requires_a_language(tiny_variant: Callable[..., Path]) -> None:
    with run_server(tiny_variant(languages=("deu_Latn", "eng_Latn"))) as server:

        def classify(language: str | list[str | None] | None, texts: int = 1) -> httpx2.Response:
            return server.post("/classify", {"texts": ["the team"] * texts, "task": "topic", "language": language})

        german, english = classify(["de", "eng_Latn"], 2).json()["predictions"]
        assert (german["language"], english["language"]) == ("deu_Latn", "eng_Latn")
        assert german["probabilities"] != english["probabilities"], "the same text in two languages"
        for prediction in (german, english):
            (single_prediction,) = classify(prediction["language"]).json()["predictions"]
            assert_probabilities_close(prediction["probabilities"], single_prediction["probabilities"], LLAMA_CPP)
        assert error_of(classify(["de", None], 2))["message"].startswith(
            "this encoder requires the language of text 1; "
        )
        for language, code in (("German", "deu_Latn"), ("lb", "deu_Latn"), ("auto", "eng_Latn")):
            assert classify(language).json()["predictions"][0]["language"] == code
        for languages, message in (
            (None, "this encoder requires the language of the texts"),
            ("zh", "the encoder supports neither Chinese (zh) nor"),
        ):
            assert classify(languages).status_code == 422
            assert error_of(classify(languages))["message"].startswith(message)


def test_languages_share_a_batch(tiny_bundle: Path) -> None:
    class Slow(Model):
        def compute(self, task: str | None, items: list[Any]) -> Sequence[Any]:
            calls.append(len(items))
            started.set()
            assert release.wait(TIMEOUT_S)
            return super().compute(task, items)

    calls: list[int] = []
    started, release = threading.Event(), threading.Event()
    with (
        run_server(tiny_bundle, load=lambda: Slow(Bundle.open(tiny_bundle))) as server,
        ThreadPoolExecutor(8) as threads,
    ):
        first = submit(threads, server, ["first"])
        assert started.wait(TIMEOUT_S)
        others = [submit(threads, server, ["the team"], language) for language in ("de", "auto", "fr", None)]
        wait_until(lambda: server.worker.batcher.waiting == len(others))
        release.set()
        assert "language" not in first.result(TIMEOUT_S).json()["predictions"][0]
        languages = [call.result(TIMEOUT_S).json()["predictions"][0].get("language") for call in others]
    assert languages == ["deu_Latn", "eng_Latn", "fra_Latn", None]
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
        ({"texts": ["a"]}, "task is required; this model has topic, sentiment", "task"),
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
def test_invalid_requests(server: RunningServer, body: object, message: str, param: str | None) -> None:
    response = server.post("/classify", body)
    assert response.status_code == 422
    error = error_of(response)
    assert error["message"].startswith(message)
    assert error["param"] == param


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ('{"texts": [', "application/json", "the body is not valid JSON: "),
        ("", "application/json", "the body: field required"),
        ("[]", "application/json", "the body: input should be"),
        ('{"texts": ["\\ud800"], "task": "topic"}', "application/json", "text 0 holds half of a surrogate pair"),
        ('{"texts": ["a"], "\\ud800": 1}', "application/json", "the body: input should be a valid string"),
        # a form of a foreign page can send this without a CORS preflight
        ('{"texts": ["a"], "task": "topic"}', "text/plain", "the body: input should be"),
    ],
)
def test_invalid_bodies(server: RunningServer, content: str, kind: str, message: str) -> None:
    response = server.client.post("/classify", content=content, headers={"Content-Type": kind})
    assert response.status_code == 422
    assert error_of(response)["message"].startswith(message)


def test_other_paths_and_methods(server: RunningServer) -> None:
    assert (server.get("/nowhere").status_code, server.get("/classify").status_code) == (404, 405)
    assert error_of(server.get("/nowhere"))["code"] == "not_found"
    assert server.get("/docs").status_code == 404, "it would load scripts from another server"
    assert set(server.get("/openapi.json").json()["paths"]) >= {"/classify", "/v1/embeddings"}


def test_there_are_no_cors_headers(server: RunningServer) -> None:
    foreign = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for response in (
        server.client.options("/classify", headers=foreign),
        server.get("/v1/models", headers=foreign),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("sized", [True, False], ids=["content-length", "chunked"])
def test_a_long_body_is_refused(tiny_bundle: Path, sized: bool) -> None:
    body = json.dumps({"texts": ["a" * 1000] * 3000, "task": "topic"}).encode()
    content = body if sized else iter([body[start : start + 65536] for start in range(0, len(body), 65536)])
    with run_server(tiny_bundle, limits=Limits(max_body_bytes=MIB), load=BlockingModel) as server:
        response = server.client.post("/classify", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert error_of(response)["message"].startswith(f"the body is longer than {MIB} bytes")


def submit(threads: ThreadPoolExecutor, server: RunningServer, texts: list[str], language: str | None = None) -> Any:
    return threads.submit(server.post, "/classify", {"texts": texts, "task": "topic", "language": language})


def labels(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [prediction["label"] for prediction in response.json()["predictions"]]


def test_a_full_queue_is_429_and_waiting_texts_share_batches(
    blocking_server: tuple[RunningServer, BlockingModel],
) -> None:
    server, model = blocking_server
    with ThreadPoolExecutor(8) as threads:
        first = submit(threads, server, ["first"])
        assert model.started.wait(TIMEOUT_S)
        two = submit(threads, server, ["b", "c"])
        wait_until(lambda: server.worker.batcher.waiting == 2)
        another = submit(threads, server, ["d"])
        wait_until(lambda: server.worker.batcher.waiting == 3)
        refused = server.post("/classify", {"texts": ["e", "f"], "task": "topic"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert error_of(refused)["code"] == "too_many_requests"
        assert "mtllm_edge_queue_texts 3.0" in server.get("/metrics").text
        model.release.set()
        assert [labels(call.result(TIMEOUT_S)) for call in (first, two, another)] == [["first"], ["b", "c"], ["d"]]
    assert model.calls == [["first"], ["b", "d"], ["c"]]


def test_a_disconnected_client_leaves_the_queue(blocking_server: tuple[RunningServer, BlockingModel]) -> None:
    server, model = blocking_server
    with ThreadPoolExecutor(8) as threads:
        first = submit(threads, server, ["first"])
        assert model.started.wait(TIMEOUT_S)
        with httpx2.Client() as client, pytest.raises(httpx2.ReadTimeout):
            client.post(f"{server.url}/classify", json={"texts": ["b", "c"], "task": "topic"}, timeout=0.5)
        wait_until(lambda: server.worker.batcher.waiting == 0)
        model.release.set()
        assert labels(first.result(TIMEOUT_S)) == ["first"]
    wait_until(lambda: 'requests_total{endpoint="/classify",status="499"} 1.0' in server.get("/metrics").text)
    assert model.calls == [["first"]]


def test_a_failing_engine_fails_one_request_without_details(
    blocking_server: tuple[RunningServer, BlockingModel],
) -> None:
    server, model = blocking_server
    with ThreadPoolExecutor(8) as threads:
        first = submit(threads, server, ["first"])
        assert model.started.wait(TIMEOUT_S)
        good, bad = submit(threads, server, ["good"]), submit(threads, server, ["poison"])
        wait_until(lambda: server.worker.batcher.waiting == 2)
        model.release.set()
        assert [labels(call.result(TIMEOUT_S)) for call in (first, good)] == [["first"], ["good"]]
        assert bad.result(TIMEOUT_S).status_code == 500
        assert error_of(bad.result(TIMEOUT_S))["message"] == "the server failed; see its log"


def test_requests_before_the_model_is_loaded(tiny_bundle: Path) -> None:
    model, loading = BlockingModel(), BlockingModel()

    def load() -> BlockingModel:
        assert loading.release.wait(TIMEOUT_S)
        return model

    with run_server(tiny_bundle, load=load, wait=False) as server:
        health = server.get("/healthz")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        response = server.post("/classify", {"texts": ["a"], "task": "topic"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert error_of(response)["message"] == "the model is loading; try again in a moment"
        assert server.get("/v1/models").json()["data"][0]["id"] == "tiny"
        loading.release.set()
        model.release.set()
        wait_until(lambda: server.get("/healthz").json() == {"status": "ready"})
        assert server.post("/classify", {"texts": ["a"], "task": "topic"}).status_code == 200


def test_the_token(tiny_bundle: Path) -> None:
    model = BlockingModel()
    model.release.set()
    body = {"texts": ["a"], "task": "topic"}
    with run_server(tiny_bundle, policy=AccessPolicy(TOKEN, False), load=lambda: model) as server:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert server.get(path).status_code == 401
        for header in ("", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer ÄÖ"):
            response = server.post("/classify", body, headers={"Authorization": header.encode("latin-1")})
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert error_of(response)["message"] == "a token is required, as in: Authorization: Bearer TOKEN"
        for scheme in ("Bearer", "bearer"):
            assert server.post("/classify", body, headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200
        assert (server.get("/").status_code, server.get("/healthz").status_code) == (200, 200)
        assert server.get("/healthz", headers={"Host": "models.example.org"}).status_code == 200


def test_loopback_accepts_loopback_names_only(server: RunningServer) -> None:
    for host in ("127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.2"):
        assert server.get("/v1/models", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"):
        response = server.get("/v1/models", headers={"Host": host})
        assert response.status_code == 400, host
        assert error_of(response)["message"] == "this server accepts the hosts localhost, 127.0.0.1 and [::1] only"


def test_metrics(tiny_bundle: Path) -> None:
    model = BlockingModel()
    model.release.set()
    with run_server(tiny_bundle, load=lambda: model) as server:
        server.post("/classify", {"texts": ["a", "b"], "task": "topic"})
        server.post("/classify", {"texts": ["c"], "task": "topic"})
        server.post("/classify", {"texts": [], "task": "none"})
        server.get("/a/path/that/somebody/guesses")
        response = server.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert values["mtllm_edge_requests_total", "/classify", "200"] == 2
    assert values["mtllm_edge_requests_total", "/classify", "422"] == 1
    assert values["mtllm_edge_requests_total", "404", "other"] == 1
    assert values["mtllm_edge_request_seconds_count", "/classify"] == 3
    assert values["mtllm_edge_texts_total", "/classify"] == 3
    assert values["mtllm_edge_tokens_total", "/classify"] == 3
    assert values["mtllm_edge_queue_texts",] == 0
    assert values["mtllm_edge_batch_texts_count",] == 2
    assert values["mtllm_edge_batch_texts_sum",] == 3
    assert values["mtllm_edge_batch_tokens_bucket", "32.0"] == 2


def test_the_page_policy_allows_inline_elements_only(server: RunningServer) -> None:
    response = server.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    page = response.text
    assert response.headers["content-type"].startswith("text/html")
    assert "://" not in page.replace("http://www.w3.org/2000/svg", ""), "the page loads nothing from other servers"
    assert "innerHTML" not in page
