"""A person looks at the records that are most in doubt, and decides."""
