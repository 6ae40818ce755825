"""The page: what the API answers, drawn for people. It has no figure of its own."""
