"""Training on the resident base: datasets, masks, the trainer, evaluation.

The dataset modules and ``masks`` import neither torch nor model code, so that the front can check data.
"""
