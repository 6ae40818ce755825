"""A base that has prompts of its own is trained with them, and keeps them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from services.retriever.embed import embed_passages, embed_queries
from services.trainer.config import Prompts, TrainingConfig
from services.trainer.mixture_config import FretSource, Mixture
from services.trainer.prompts import exported_prompts, put_before, resolved
from services.trainer.train import train
from shared.errors import SettingError
from shared.records import Passage, TaskQuery
from shared.text_format import DOCUMENT_PROMPT, PutBefore
from tests.records_in_memory import Records
from tests.unit.datasets_in_files import LABELLED, dataset_source, jsonl
from tests.unit.test_train import config, records
from tests.unit.tiny_model import make_tiny_model, with_prompts

OWN = PutBefore("sort file ", "list path ")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def base(bare: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    prompts = {"query": OWN.query, "document": OWN.document, "other": "x"}
    return with_prompts(bare, tmp_path_factory.mktemp("prompted") / "base", prompts)


def test_it_trains_as_on_texts_that_have_the_prompts_in_them(base: str, bare: str, tmp_path: Path) -> None:
    plain = records(24).page(None, 24)
    by_hand = Records(
        [
            replace(
                record,
                query_text=OWN.query + record.query_text,
                positive=replace(record.positive, text=OWN.document + record.positive.text),
                negatives=tuple(replace(p, text=OWN.document + p.text) for p in record.negatives),
            )
            for record in plain
        ]
    )
    own = train(config(base, prompts="own"), Records(plain), tmp_path / "own")
    written = train(config(bare, prompts="none"), by_hand, tmp_path / "written")
    assert own["first_loss"] == written["first_loss"]
    assert own["last_loss"] == written["last_loss"]
    model = SentenceTransformer(own["model_dir"])
    assert model.prompts["query"] == OWN.query
    assert model.prompts["document"] == OWN.document
    assert f"`{OWN.query}` before a query" in (Path(own["model_dir"]) / "README.md").read_text()


def test_symmetric_targets_stand_behind_the_queries_prompt(base: str, bare: str, tmp_path: Path) -> None:
    def first_loss(name: str, model: str, prompts: str, prompt: str) -> float:
        rows = [{"text": prompt + row["text"], "label": row["label"]} for row in LABELLED]
        source = dataset_source("classification", jsonl(tmp_path / f"{name}.jsonl", rows))
        mixed = config(model, prompts=prompts, mixture=Mixture(sources=(source,)), num_train_epochs=1)
        found: float = train(mixed, records(), tmp_path / name)["first_loss"]
        return found

    assert first_loss("own", base, "own", "") == first_loss("written", bare, "none", OWN.query)


def test_a_base_whose_vectors_leave_its_prompts_out_is_trained_without_them(base: str, tmp_path: Path) -> None:
    model = SentenceTransformer(base)
    assert put_before(model, TrainingConfig()) == OWN
    assert put_before(model, TrainingConfig(prompts=Prompts.NONE)) == PutBefore()
    model.set_pooling_include_prompt(False)
    model.save_pretrained(str(tmp_path / "base"))
    with pytest.raises(SettingError, match="leaves its prompts out of its vectors"):
        train(config(str(tmp_path / "base"), prompts="own"), records(), tmp_path / "own")
    facts = train(config(str(tmp_path / "base"), num_train_epochs=1, prompts="none"), records(200), tmp_path / "none")
    assert "base_as_it_is" not in facts["development_ndcg@10"]


def test_a_model_with_geckos_prompts_has_them_in_its_vectors_whatever_its_base_does(bare: str, tmp_path: Path) -> None:
    """As the training had: what is handed over would be another model else."""
    base = SentenceTransformer(bare)
    base.set_pooling_include_prompt(False)
    base.save_pretrained(str(tmp_path / "base"))
    facts = train(config(str(tmp_path / "base"), num_train_epochs=1), records(), tmp_path / "work")
    model = SentenceTransformer(facts["model_dir"])
    written = model.encode(["task: search result | query: open the file"], prompt="")
    assert model.encode_query(["open the file"]) == pytest.approx(written, abs=1e-6)


def test_a_base_whose_own_prompts_are_geckos_gets_task_descriptions_and_titles(bare: str) -> None:
    model = SentenceTransformer(bare)
    assert resolved(model, TrainingConfig()).prompts == Prompts.OWN
    model.prompts = {"query": "task: search result | query: ", "document": DOCUMENT_PROMPT}
    assert resolved(model, TrainingConfig()).prompts == Prompts.GECKO
    assert resolved(model, TrainingConfig(prompts=Prompts.NONE)).prompts == Prompts.NONE


def test_prompts_have_mtebs_names_for_symmetric_data(bare: str, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [])
    sources = (
        FretSource(kind="fret"),
        dataset_source("pair", file),
        dataset_source("classification", file),
        dataset_source("nli", file),
    )
    gecko = TrainingConfig(prompts=Prompts.GECKO, mixture=Mixture(sources=sources))
    assert exported_prompts(SentenceTransformer(bare), gecko, "search result") == {
        "query": "task: search result | query: ",
        "document": "title: none | text: ",
        "Classification": "task: task of classification | query: ",
        "STS": "task: task of nli | query: ",
    }
    another = dataset_source("classification", file, name="another", task_description="name the film's genre")
    of_several = gecko.model_copy(update={"mixture": Mixture(sources=(*sources, another))})
    found = exported_prompts(SentenceTransformer(bare), of_several, "search result")
    assert found["Classification"] == "task: classification | query: "  # one set's task is wrong before another's texts
    assert found["STS"] == "task: task of nli | query: "
    own = TrainingConfig(mixture=Mixture(sources=sources))
    assert exported_prompts(SentenceTransformer(bare), own, "search result") == {"query": "", "document": ""}
    prompted = SentenceTransformer(bare)
    prompted.prompts = {"query": OWN.query, "document": OWN.document}
    found = exported_prompts(prompted, own, "search result")
    assert found == {"query": OWN.query, "document": OWN.document, "Classification": OWN.query, "STS": OWN.query}


def test_an_embedder_with_prompts_of_its_own_is_asked_with_them(base: str, bare: str) -> None:
    query = TaskQuery(UUID(int=1), UUID(int=2), 0, "search result", "how to open a file")
    passage = Passage(UUID(int=2), "Files", "open(path) returns a file object.")
    model = SentenceTransformer(base)
    assert embed_queries(base, [query])[0] == pytest.approx(unit(model.encode_query(query.query_text)), abs=1e-6)
    assert embed_passages(base, [passage])[0] == pytest.approx(
        unit(model.encode_document("Files open(path) returns a file object.")), abs=1e-6
    )
    assert embed_queries(base, [query])[0] != pytest.approx(embed_queries(bare, [query])[0], abs=1e-3)


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)
