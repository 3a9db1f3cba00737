"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from mtllm_edge import Embedder
from mtllm_edge.server.auth import Door
from tests.fixtures.tiny_bundle import N_EMBD
from tests.runtime.server.conftest import Served, serving

TEXTS = ["the team is good", "не хорошо", "中国 在 这 里"]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_embeddings(client: openai.OpenAI, tiny_bundle: Path, form: str | None) -> None:
    options = {} if form is None else {"encoding_format": form}
    answer = client.embeddings.create(model="tiny", input=TEXTS, **options)
    with Embedder.load(tiny_bundle) as embedder:
        expected_NE = embedder.embed(TEXTS)
        tokens = sum(len(text.ids) for text in embedder.encode(TEXTS))
    rows = [one.embedding for one in answer.data]
    if form == "base64":  # asked for by name, it is left as it came
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    np.testing.assert_allclose(np.array(rows), expected_NE, rtol=0, atol=1e-4)
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert (answer.model, answer.object) == ("tiny", "list")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_one_text(client: openai.OpenAI) -> None:
    (one,) = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=N_EMBD).data
    assert len(one.embedding) == N_EMBD


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("tiny", "mtllm-edge")
    assert model.created > 0


def test_the_name_of_the_folder_will_do(client: openai.OpenAI, tiny_bundle: Path) -> None:
    assert tiny_bundle.name == "bundle"
    assert client.embeddings.create(model="bundle", input="a").model == "tiny"


def test_refusals(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt' here, only 'tiny'"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.UnprocessableEntityError, match="token ids are another model's"):
        client.embeddings.create(model="tiny", input=[[1, 2]])
    with pytest.raises(openai.UnprocessableEntityError, match=f"vectors have {N_EMBD} dimensions"):
        client.embeddings.create(model="tiny", input="a", dimensions=3)
    with pytest.raises(openai.UnprocessableEntityError, match="text 1 is empty"):
        client.embeddings.create(model="tiny", input=["a", ""])
    with pytest.raises(openai.UnprocessableEntityError, match="unknown language 'Klingonish'"):
        client.embeddings.create(model="tiny", input="a", extra_body={"language": "Klingonish"})
    with pytest.raises(openai.UnprocessableEntityError, match="language: input should be a valid string"):
        client.embeddings.create(model="tiny", input=["a"], extra_body={"language": ["de"]})


def test_the_key_is_the_token(tiny_bundle: Path) -> None:
    token = "correct-horse-battery"
    with serving(tiny_bundle, door=Door(token, False)) as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=token) as client:
            assert len(client.embeddings.create(model="tiny", input="a").data) == 1
        with (
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError, match="a token is needed"),
        ):
            client.embeddings.create(model="tiny", input="a")
