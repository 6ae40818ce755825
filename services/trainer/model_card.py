"""The model's README.md: its data, configuration, measured effect and limits. Written from files; no torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from services.trainer.lines_to_copy import listed, use_of_both, use_of_one

FACTS_FILE = "training.json"
ANY_VERSION = """\
Versions of sentence-transformers from 3.4 on load it. Before 5 there is no `encode_query`, but
`encode(…, prompt_name="query")`, and so for `document`."""
OF_RECORDS = (
    "records",
    "teacher",
    "positive",
    "negative",
    "accepted_in_review",
    "swapped_in_review",
    "dropped_in_review",
)


def write_model_card(model_dir: Path, evaluation: Mapping[str, Any] | None = None) -> None:
    """Writes `model_dir/README.md` from what training.json says and, where it is known, `evaluate`'s report."""
    facts = orjson.loads((model_dir / FACTS_FILE).read_bytes())
    (model_dir / "README.md").write_text(render(facts, evaluation), encoding="utf-8")


def render(facts: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """The card's text, in Markdown with the front matter that model hubs read."""
    facts = dict(facts)
    config, dims = dict(facts.pop("config")), facts.pop("dims")
    mixture, sources = config.pop("mixture", None), facts.pop("sources", {})
    plain_mean, prompts = facts.pop("plain_mean", False), facts.pop("prompts", {"query": "", "document": ""})
    projection = facts.pop("projection_file", None)
    versions = ANY_VERSION if facts.pop("classic_form", False) else "It takes sentence-transformers 6 or later."
    base = config["model_name_or_path"]
    passages_cut, queries_cut = (
        f" (about {facts[share]:.0%} of the run's {what} are longer)" if facts.get(share) else ""
        for share, what in (("share_cut", "positives"), ("share_of_queries_cut", "queries"))
    )
    on_records, queries_alone = facts.get("records") != 0, config.get("train") == "queries"
    if not on_records:
        facts = {name: value for name, value in facts.items() if name not in OF_RECORDS}
    if queries_alone:
        use = use_of_both(prompts, dims)
    else:
        use = use_of_one(prompts, dims, plain_mean, projection, config.get("onnx", False), versions)
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, sentence-similarity, matryoshka, fretwork]
---

# {base}, tuned{" on FRet records" if on_records else ""}

{_what(base, dims, queries_alone)}

## Use

{use}

## Effect

{_effect(evaluation)}
{_development(facts, config["interpolation"])}

## Data

{_table(facts)}
{_mixture(mixture, sources)}
## Configuration

{_table(config)}

`temperature` is 1 / sentence-transformers' `scale`. No dropout, AdamW without weight decay, gradient norm at most 1.

## Limits

{LIMITS_OF_RECORDS if on_records else LIMITS_OF_DATASETS}
- Passages were read up to {config["passage_max_len"]} tokens in training{passages_cut},
  queries up to {config["query_max_len"]}{queries_cut}.
"""


LIMITS_OF_RECORDS = """\
- The queries are synthetic: written from the passages, and judged, by the teacher that the data table names. Its errors
  and its taste are in the weights.
- Tuned to the corpus of the data table. On other corpora it may be worse than its base; measure before you use it."""
LIMITS_OF_DATASETS = """\
- Tuned to the datasets of the table above and to no record of the run, of which nothing but held-out queries was read.
  On other texts it may be worse than its base; measure before you use it."""


def _what(base: str, dims: Sequence[int], queries_alone: bool) -> str:
    cut = f"which may be cut to {listed(dims[1:])}\ndimensions and normalised again (Matryoshka)"
    made = f"Made by Fretwork, an open implementation of Gecko (arXiv 2403.20327), from\n`{base}`."
    if queries_alone:
        return (
            f"Two text encoders: a tuned one for queries, and `{base}` as it is for passages. **It is for an index of\n"
            f"`{base}`'s vectors**, which stays as it is. Vectors of {dims[0]} dimensions, compared by cosine, {cut}.\n"
            f"{made} Queries' vectors are comparable with those of `{base}`'s passages, and with no others."
        )
    return (
        f"A text-embedding model: vectors of {dims[0]} dimensions, compared by cosine, {cut}. {made} "
        "Vectors are comparable only with those of this same model."
    )


def _effect(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "Not measured yet."
    measured = f"{evaluation['queries']} queries over {evaluation['passages']} passages, {evaluation['path']}"
    lines = [f"Measured on {measured} ({evaluation['split']}).", ""]
    before = evaluation.get("baseline")
    shown = ("ndcg@10", "recall@10", "mrr@10")
    if before is None:
        lines += ["| dimensions | nDCG@10 | Recall@10 | MRR@10 |", "|---|---|---|---|"]
        for dim, after in sorted(evaluation["dims"].items(), key=lambda item: -int(item[0])):
            lines.append(f"| {dim} | " + " | ".join(f"{after[metric]:.4f}" for metric in shown) + " |")
    else:
        lines += [
            f"Before is `{before['model']}`; the interval is a paired bootstrap's over the queries.",
            "",
            "| dimensions | nDCG@10 | difference, 95% interval | Recall@10 | MRR@10 |",
            "|---|---|---|---|---|",
        ]
        for dim, after in sorted(evaluation["dims"].items(), key=lambda item: -int(item[0])):
            low, high = evaluation["delta"][dim]["ndcg@10"]["ci95"]
            moved = [f"{before['dims'][dim][metric]:.4f} → {after[metric]:.4f}" for metric in shown]
            difference = f"{evaluation['delta'][dim]['ndcg@10']['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"
            lines.append(f"| {dim} | {moved[0]} | {difference} | {moved[1]} | {moved[2]} |")
    return "\n".join(lines)


def _mixture(mixture: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> str:
    if mixture is None:
        return ""
    lines = [
        "\nEach batch is of one of these sources, drawn by weight.\n",
        "| source | kind | from | task description | weight | batches | examples | rows left out |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for source in mixture["sources"]:
        of = facts[source["name"]]
        place = "the ledger" if source["kind"] == "fret" else source["hub"] or source["path"]
        left_out = "; ".join(f"{count} {reason}" for reason, count in of.get("rows_left_out", {}).items()) or "none"
        task = source.get("task_description", "each record's own")
        if "groups" in of:
            task += f", drawn from {of['groups']} groups alike"
        shown = (source["name"], source["kind"], place, task, source["weight"], of["batches"], of["examples"], left_out)
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    return "\n".join(lines) + "\n"


def _development(facts: Mapping[str, Any], asked: float | None) -> str:
    """What the run's own held-out queries say of the training; `asked`: the share that was asked for, if one was."""
    found = facts.get("development_ndcg@10")
    if found is None:
        why = (
            "the run has fewer than 200 records, or too few distinct positives"
            if asked is None
            else "the share of the tuned weights was given"
        )
        return f"\nNo record was held out ({why}), so nothing here says whether this model is better than its base.\n"
    on = f"On {facts['development_queries']} of the run's own queries, held out from training, nDCG@10 is"
    of_base, of_encoder = found.get("base_as_it_is", found["0"]), found["0"]
    compared = f"{on} {of_base:.4f} with the base"
    if facts.get("projection"):
        compared += f", {of_encoder:.4f} with it behind the fitted projection"
    if facts["interpolation"] == 0:
        is_base = facts.get("base_as_it_is") or (of_encoder == of_base and not facts.get("projection"))
        what = "is its base, unchanged" if is_base else "has its base's encoder, unchanged"
        if facts.get("projection"):
            what += ", on the principal axes of its vectors" if is_base else ", behind a projection fitted to the run"
        elif not is_base:
            what += ", which is read as in the training"
        return (
            f"\n**This model {what}.** {compared} and {found['1']:.4f} with the tuned encoder; no share of its weights "
            "did better than none.\n"
        )
    share = facts["interpolation"]
    return (
        f"\n{compared} and {found[format(share, 'g')]:.4f} with these weights, which are {share:.0%} tuned."
        f"{_undecided(found)} The queries are synthetic, like those of the training.\n"
    )


def _undecided(found: Mapping[str, float]) -> str:
    of_shares = {value for share, value in found.items() if share != "base_as_it_is"}
    return " All shares of the tuned weights do alike there, so they do not tell." if len(of_shares) == 1 else ""


def _table(values: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for name, value in values.items():
        lines.append(f"| {name} | {_shown(value)} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    match value:
        case dict():
            return listed([f"{key}: {_shown(of_key)}" for key, of_key in value.items()])
        case list():
            return listed(value)
        case float():
            return f"{value:.4g}"
    return str(value)
