"""A tone of writing, stacked on facts: greeting, short sentences, words that are avoided, closing."""
