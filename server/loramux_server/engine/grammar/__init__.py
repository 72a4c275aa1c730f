"""Constrained output: grammars in processes of their own, and the token masks that they give."""
