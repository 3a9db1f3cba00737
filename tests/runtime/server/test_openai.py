"""The server with OpenAI's client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from mtllm_edge import Embedder
from mtllm_edge.server.auth import AccessPolicy
from tests.fixtures.tiny_bundle import N_EMBD
from tests.fixtures.tolerances import LLAMA_CPP, assert_vectors_close
from tests.runtime.server.conftest import RunningServer, run_server

TEXTS = ["the team is good", "не хорошо", "中国 在 这 里"]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings(client: openai.OpenAI, tiny_bundle: Path, encoding: str | None) -> None:
    options = {} if encoding is None else {"encoding_format": encoding}
    response = client.embeddings.create(model="tiny", input=TEXTS, **options)
    with Embedder.load(tiny_bundle) as embedder:
        expected_NE = embedder.embed(TEXTS)
        tokens = sum(len(text.ids) for text in embedder.encode(TEXTS))
    rows = [row.embedding for row in response.data]
    if encoding == "base64":  # the client does not decode it if it is requested explicitly
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    assert_vectors_close(rows, expected_NE, LLAMA_CPP)
    assert [row.index for row in response.data] == [0, 1, 2]
    assert (response.model, response.object) == ("tiny", "list")
    assert (response.usage.prompt_tokens, response.usage.total_tokens) == (tokens, tokens)


def test_one_text(client: openai.OpenAI) -> None:
    (row,) = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=N_EMBD).data
    assert len(row.embedding) == N_EMBD


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("tiny", "mtllm-edge")
    assert model.created > 0


def test_the_folder_name_is_accepted(client: openai.OpenAI, tiny_bundle: Path) -> None:
    assert tiny_bundle.name == "bundle"
    assert client.embeddings.create(model="bundle", input="a").model == "tiny"


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt', only 'tiny'"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.UnprocessableEntityError, match="token ids belong to another model"):
        client.embeddings.create(model="tiny", input=[[1, 2]])
    with pytest.raises(openai.UnprocessableEntityError, match=f"embeddings have {N_EMBD} dimensions"):
        client.embeddings.create(model="tiny", input="a", dimensions=3)
    with pytest.raises(openai.UnprocessableEntityError, match="text 1 is empty"):
        client.embeddings.create(model="tiny", input=["a", ""])
    with pytest.raises(openai.UnprocessableEntityError, match="unknown language 'Klingonish'"):
        client.embeddings.create(model="tiny", input="a", extra_body={"language": "Klingonish"})
    with pytest.raises(openai.UnprocessableEntityError, match="language: input should be a valid string"):
        client.embeddings.create(model="tiny", input=["a"], extra_body={"language": ["de"]})


def test_the_api_key_is_the_token(tiny_bundle: Path) -> None:
    token = "correct-horse-battery"
    with run_server(tiny_bundle, policy=AccessPolicy(token, False)) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=token) as client:
            assert len(client.embeddings.create(model="tiny", input="a").data) == 1
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError, match="a token is required"),
        ):
            client.embeddings.create(model="tiny", input="a")
