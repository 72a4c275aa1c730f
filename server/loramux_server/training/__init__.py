"""QLoRA training on the resident base: the trainer, its objectives, evaluation, checkpoints, and the job scheduler.

``trainer`` is a job from top to bottom. ``job_scheduler`` runs several of them beside serving.
"""
