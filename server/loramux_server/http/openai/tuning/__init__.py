"""OpenAI's files and fine-tuning jobs over the datasets and jobs of the training service."""
