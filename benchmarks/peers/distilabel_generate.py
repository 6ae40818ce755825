"""distilabel's TextGeneration over the prompts of a JSON file, against an OpenAI-compatible server.

Runs in an environment of its own: python distilabel_generate.py BASE_URL PROMPTS.json [tuned]
A step sends a batch at once and waits for all of it. Tuned, the batch is a multiple of what the server takes at a time.
"""

import json
import sys

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

TUNED_BATCH = 256


def main() -> None:
    base_url, prompts_file, *tuned = sys.argv[1:]
    with open(prompts_file) as file:
        data = [{"instruction": prompt} for prompt in json.load(file)]
    with Pipeline(name="bench") as pipeline:
        load = LoadDataFromDicts(data=data, **({"batch_size": TUNED_BATCH} if tuned else {}))
        llm = OpenAILLM(base_url=base_url, model="stub", api_key="none", generation_kwargs={"max_new_tokens": 160})
        write = TextGeneration(llm=llm, **({"input_batch_size": TUNED_BATCH} if tuned else {}))
        load >> write
    made = pipeline.run(use_cache=False)["default"]["train"]
    texts = [text for text in made["generation"] if text]
    assert len(texts) == len(data), f"{len(texts)} of {len(data)} were generated"


if __name__ == "__main__":  # its steps are processes
    main()
