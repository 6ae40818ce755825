"""The contract between the services: what two of them must do identically, and nothing else.

No service is imported from here, and torch by two modules alone, which are loaded where a model runs
(`sentence_model.py`, `llm/local.py`); `make lint` checks both.
"""
