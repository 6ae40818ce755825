"""The contract between the services: what two of them must do identically, and nothing else.

No torch here, and no service is imported from here; `make lint` checks both.
"""
