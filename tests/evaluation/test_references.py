"""The numbers of ../shared/data/*/reference.json, made again by our rules from the raw files."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from star_jax.evaluation.baselines import item_knn, popularity, tfidf
from star_jax.evaluation.baselines.interactions import Interactions, row_products
from star_jax.evaluation.metrics import LabelledPairs, pair_metrics
from star_jax.evaluation.ranking import query_metrics

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SETS = ("jobviews", "seqa", "seqa_tiny")
VISIBLE = {"val": ["train"], "test": ["train", "val"]}
KEYS = {"val": "methods_val", "test": "methods"}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not here")


def columns(name, file):
    table = pq.read_table(DATA / name / f"{file}.parquet")
    return {column: np.asarray(table[column].to_pylist()) for column in table.column_names}


def reference(name):
    return json.loads((DATA / name / "reference.json").read_text(encoding="utf-8"))


def visible(name, split):
    events = columns(name, "interactions")
    seen = np.isin(events["split"], VISIBLE[split])
    return {column: values[seen] for column, values in events.items()}


def interactions(name, split):
    seen = visible(name, split)
    num_jobs = pq.read_metadata(DATA / name / "nodes" / "job.parquet").num_rows
    num_members = pq.read_metadata(DATA / name / "nodes" / "member.parquet").num_rows
    return Interactions(seen["member"], seen["job"], num_members, num_jobs)


def fixed_pairs(name, split):
    pairs = columns(name, f"eval/pairs_{split}")
    warm = {"warm_member": pairs["warm_member"]}
    return pairs, LabelledPairs(pairs["label"] == 1, pairs["neg_type"], pairs["member"], warm)


@pytest.mark.parametrize("split", VISIBLE)
@pytest.mark.parametrize("name", SETS)
def test_auc_of_popularity_to_the_last_digit(name, split):
    pairs, labelled = fixed_pairs(name, split)
    scores = popularity.fit(interactions(name, split)).score(pairs["member"], pairs["job"])
    found = {key: round(value, 4) for key, value in pair_metrics(labelled, scores).items()}
    given = reference(name)[KEYS[split]]["popularity"]
    assert found == {key: value for key, value in given.items() if key.startswith("auc")}


@pytest.mark.parametrize("split", VISIBLE)
@pytest.mark.parametrize("name", ["jobviews", "seqa"])
def test_auc_of_item_knn_but_for_ties_of_rounding(name, split):
    pairs, labelled = fixed_pairs(name, split)
    scores = item_knn.fit(interactions(name, split)).score(pairs["member"], pairs["job"])
    given = reference(name)[KEYS[split]]["item_knn"]
    for key, value in pair_metrics(labelled, scores).items():
        assert value == pytest.approx(given[key], abs=3e-4)


def ranking(name):
    """A query is a warm member with all its test jobs; its earlier jobs are left out."""
    rows, seen = columns(name, "eval/rank_test"), visible(name, "test")
    members = np.unique(rows["member"][rows["warm_member"]])
    relevant = [rows["job"][rows["member"] == m] for m in members]
    earlier = [seen["job"][seen["member"] == m] for m in members]
    return members, columns(name, "eval/candidates_test")["job"], relevant, earlier


@pytest.mark.parametrize("name", SETS)
def test_ranking_metrics_of_popularity(name):
    members, candidates, relevant, earlier = ranking(name)
    given = reference(name)
    assert (len(members), len(candidates)) == (given["rank_queries"], given["rank_candidates"])
    scores = popularity.fit(interactions(name, "test")).grid(members, candidates)
    found = query_metrics(scores, candidates, relevant, earlier).means()
    # The reference breaks the many ties of counts by some order, we take their expectation.
    slack = {"jobviews": 0.003, "seqa": 0.001, "seqa_tiny": 0.1}[name]
    for key, value in found.items():
        assert value == pytest.approx(given["methods"]["popularity"][key], abs=slack)


@pytest.mark.parametrize("name", SETS)
def test_ranking_metrics_of_chance(name):
    members, candidates, relevant, earlier = ranking(name)
    scores = np.zeros((len(members), len(candidates)))  # One tie: its expectation is chance.
    found = query_metrics(scores, candidates, relevant, earlier)
    given = reference(name)["methods"]["random"]
    for key, value in found.means().items():
        assert abs(value - given[key]) < 4 * 0.5 / len(members) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jobviews", "seqa"])
def test_tfidf_comes_close_with_another_vocabulary(name):
    job_texts = columns(name, "texts/job")["text"].tolist()
    member_texts = columns(name, "texts/member")["text"].tolist()
    seen = visible(name, "test")
    documents = [member_texts[i] for i in seen["member_text"]] + [job_texts[i] for i in seen["job"]]
    pairs, labelled = fixed_pairs(name, "test")
    fitted = tfidf.fit(documents)
    members, member = np.unique(pairs["member_text"], return_inverse=True)
    jobs, job = np.unique(pairs["job"], return_inverse=True)
    scores = row_products(
        fitted.vectors(member_texts[i] for i in members)[member],
        fitted.vectors(job_texts[i] for i in jobs)[job],
    )
    given = reference(name)["methods"]["tfidf_cosine"]
    for key, value in pair_metrics(labelled, scores).items():
        assert value == pytest.approx(given[key], abs=0.005)
