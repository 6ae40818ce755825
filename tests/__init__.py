"""The tests: unit/ without sockets, integration/ with real servers, e2e/ with real workers, chaos/ with a kill -9."""
